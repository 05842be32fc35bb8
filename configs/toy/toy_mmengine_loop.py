"""MMEngine's own loop, sampler and hooks around our model, data set and tiling: docs/training.md says what is lost.

trains          projector
frozen          vision encoder, LLM
starts from     work_dirs/quickstart/base, assembled by the quick start from parts that it pre-trains
data            generated images with captions
hardware        2 CPU cores
launch          xtuner train configs/toy/toy_mmengine_loop.py
"""

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook, RuntimeInfoHook
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from torch.optim import AdamW

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.models import VisionLanguageModel

work_dir = "work_dirs/toy_mmengine_loop"
model = dict(type=VisionLanguageModel, base="work_dirs/quickstart/base", dtype="float32", gradient_checkpointing=False)
train_dataloader = dict(
    batch_size=16,  # x 1 accumulation x 1 process = 16 samples per step
    num_workers=2,
    sampler=dict(type=InfiniteSampler),
    collate_fn=dict(type=collate),
    dataset=dict(
        type=MultimodalDataset,
        base="work_dirs/quickstart/base",  # that of the model, which this loop doesn't hand over
        data_paths=["work_dirs/quickstart/data/pretrain.json"],
        image_folders=["work_dirs/quickstart/data/images"],
        max_tiles=6,  # + thumbnail
        max_length=512,  # tokens; 7 tiles of 112 px take 112
    ),
)
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=3e-3), clip_grad=dict(max_norm=1.0), accumulative_counts=1
)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=100)  # micro-batches, here and below
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, end=20),
    dict(type=CosineAnnealingLR, by_epoch=False, begin=20, end=100),
]
default_hooks = dict(
    runtime_info=dict(type=RuntimeInfoHook),
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=100),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=42)
