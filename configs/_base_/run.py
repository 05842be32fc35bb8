"""What every run has: model, data, optimizer, loop, hooks. A leaf takes it in and says what differs.

A key that is left out here has the default of its class. `xtp configs NAME` shows the short names.
"""

from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, ParamSchedulerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, collate
from xtuner_plugins.engine import (
    GroupedOptimWrapperConstructor,
    ImageGainHook,
    LedgerHook,
    PlannedTrainLoop,
    RunContractHook,
    StateHook,
    StepLineHook,
    ValidationHook,
    WarmupCosineLR,
    WholeCheckpointHook,
    build_adamw,
    prepare_runtime,
)
from xtuner_plugins.models import VisionLanguageModel

model_resource = dict(fn=prepare_runtime)  # XTuner calls this before it builds anything,
pretrained_model_name_or_path = None  # with this; the base is model.base

model = dict(type=VisionLanguageModel)  # vision encoder and LLM are frozen, the projector trains
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    pin_memory=True,
    persistent_workers=True,  # not with num_workers=0
    sampler=dict(type=PlanSampler),
    collate_fn=dict(type=collate),
    dataset=dict(type=MultimodalDataset, max_tiles=12, max_length=4096),  # + thumbnail; 13 tiles take 3328 tokens
)
optim_wrapper = dict(
    type=OptimWrapper,
    constructor=GroupedOptimWrapperConstructor,
    paramwise_cfg=dict(part_lr=dict(), decay_norms_and_biases=False),  # part_lr: visual_encoder, projector, llm, lora
    optimizer=dict(type=build_adamw, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=16,  # micro-batches of an optimizer step
)
param_scheduler = dict(type=WarmupCosineLR, warmup_ratio=0.03)  # a linear start, a cosine over the rest
train_cfg = dict(type=PlannedTrainLoop, max_epochs=1)  # or max_iters, in optimizer steps

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=StepLineHook, interval=10),  # optimizer steps, here and below
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=WholeCheckpointHook, by_epoch=False, interval=500, max_keep_ckpts=2),
    validation=dict(type=ValidationHook, interval=500),  # without data_paths and benchmarks it does nothing
    sampler_seed=dict(type=DistSamplerSeedHook),
)
custom_hooks = [
    dict(type=RunContractHook),  # prints what really trains
    dict(type=StateHook),  # keeps the place in the data, tile limits, template and tokens in every checkpoint
    dict(type=LedgerHook),  # work_dir/ledger.jsonl: what was left out, and why
    dict(type=ImageGainHook),  # is the loss lower with a sample's own images than with another's?
]
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))  # gloo on CPUs
# MMEngine's own `device_ids` is the local rank, which PyTorch refuses for a model on a CPU.
model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
log_processor = dict(type=LogProcessor, by_epoch=False, window_size=1)
randomness = dict(seed=42)
