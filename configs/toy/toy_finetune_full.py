"""Toy twin of configs/finetune_full.py: projector and LLM, minutes on 2 CPU cores.

trains          projector, LLM
frozen          vision encoder
starts from     work_dirs/quickstart/pretrain_mlp, the exported warm-up: make quickstart
data            generated images with questions, half of which need the resolution
hardware        2 CPU cores
launch          python tools/train.py configs/toy/toy_finetune_full.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_full import *

model.update(base="work_dirs/quickstart/pretrain_mlp", dtype="float32", gradient_checkpointing=False)
train_dataloader.dataset.update(
    data_paths=["work_dirs/quickstart/data/train.jsonl"],
    image_folders=["work_dirs/quickstart/data/images"],
    max_tiles=6,  # + thumbnail
    max_length=512,  # tokens; 7 tiles of 112 px take 112
)
train_dataloader.update(num_workers=2, pin_memory=False)
# Ungrouped: a step of 16 would hold one kind of question. The longest 16 begin the run.
train_dataloader.sampler.update(group_by=None, group_size=16)
train_dataloader.batch_size = 16  # x 1 accumulation x 1 process = 16 samples per step
optim_wrapper.accumulative_counts = 1
optim_wrapper.optimizer.update(lr=2e-3, weight_decay=0.0)
train_cfg.max_epochs = 4
