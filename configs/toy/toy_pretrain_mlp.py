"""Toy twin of configs/pretrain_mlp.py: the projector alone, minutes on 2 CPU cores.

trains          projector
frozen          vision encoder, LLM
starts from     work_dirs/quickstart/base, assembled by the quick start from parts that it pre-trains
data            generated images with captions
hardware        2 CPU cores
launch          python tools/train.py configs/toy/toy_pretrain_mlp.py
"""

from mmengine.config import read_base

with read_base():
    from ..pretrain_mlp import *

model.update(base="work_dirs/quickstart/base", dtype="float32", gradient_checkpointing=False)
train_dataloader.dataset.update(
    data_paths=["work_dirs/quickstart/data/pretrain.json"],
    image_folders=["work_dirs/quickstart/data/images"],
    max_tiles=6,  # + thumbnail
    max_length=512,  # tokens; 7 tiles of 112 px take 112
)
train_dataloader.update(num_workers=2, pin_memory=False)
train_dataloader.sampler.group_size = 16  # so many of the longest begin the run
train_dataloader.batch_size = 16  # x 1 accumulation x 1 process = 16 samples per step
optim_wrapper.accumulative_counts = 1
optim_wrapper.optimizer.lr = 3e-3
param_scheduler.warmup_ratio = (
    0.2  # share of the optimizer steps: 20 of 100, because the projector starts from random weights
)
