"""What every run shares: logging, checkpoints, process groups, and the preparation of the process."""

from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, ParamSchedulerHook
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend

from xtuner_plugins.engine import (
    CheckpointGuardHook,
    LedgerHook,
    LossSplitHook,
    PlanHook,
    PreprocessingLockHook,
    ReportPageHook,
    RunContractHook,
    StepLineHook,
    TrackingVisualizer,
    WholeCheckpointHook,
    prepare_runtime,
)

# XTuner calls this before it builds anything.
model_resource = dict(fn=prepare_runtime)

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=StepLineHook, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    # Only what was trained is in a checkpoint; with optimizer state, so that every checkpoint can be resumed. A recipe
    # sets interval (save_steps) and max_keep_ckpts (save_total_limit).
    checkpoint=dict(type=WholeCheckpointHook, by_epoch=False, interval=500, max_keep_ckpts=2, save_optimizer=True),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
custom_hooks = [
    dict(type=RunContractHook),  # prints what really trains
    dict(type=CheckpointGuardHook),  # refuses a checkpoint of another model
    dict(type=PlanHook),  # keeps the place in the data in every checkpoint
    dict(type=PreprocessingLockHook),  # keeps tile limits, template and tokens in every checkpoint
    dict(type=LedgerHook),  # work_dir/ledger.jsonl: what was left out, and why
    dict(type=ReportPageHook),  # work_dir/report.html and loss.png: the run as a page and its loss as an image
    dict(type=LossSplitHook),  # training loss by dataset, tiles and length for the trackers
]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),  # gloo on a machine without GPU
)
model_wrapper_cfg = dict(type="DeviceAwareDDP")  # MMEngine takes only a registered name here
visualizer = dict(type=TrackingVisualizer, vis_backends=[dict(type=LocalVisBackend)])
log_processor = dict(type=LogProcessor, by_epoch=False, window_size=1)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=42, deterministic=False)
