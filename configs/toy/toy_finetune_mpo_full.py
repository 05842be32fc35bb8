"""Toy twin of configs/finetune_mpo_full.py: projector and LLM on preference pairs, minutes on 2 CPU cores.

trains          projector, LLM
frozen          vision encoder
starts from     work_dirs/quickstart/model, the quick start's export: make quickstart
data            generated images, a quarter of them too small to read (xtuner_plugins/toy/data.py)
hardware        2 CPU cores
launch          python tools/train.py configs/toy/toy_finetune_mpo_full.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_mpo_full import *

model.update(
    base="work_dirs/quickstart/model",
    dtype="float32",
    gradient_checkpointing=False,
    freeze_visual_encoder=True,
    precomputed_reference=False,  # a copy of the model
)
train_dataloader.dataset.update(
    data_paths=["work_dirs/preference/data/pairs.jsonl"],
    image_folders=["work_dirs/preference/data/images"],
    max_tiles=6,  # + thumbnail
    max_length=512,  # tokens; 7 tiles of 112 px take 112
)
train_dataloader.update(num_workers=2, pin_memory=False)
train_dataloader.batch_size = 16  # x 1 accumulation x 1 process = 16 samples per step
optim_wrapper.accumulative_counts = 1
optim_wrapper.optimizer.update(lr=4e-4, weight_decay=0.0)
