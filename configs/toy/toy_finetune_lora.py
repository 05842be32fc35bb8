"""Toy twin of configs/finetune_lora.py: projector, and LoRA on the LLM, minutes on 2 CPU cores.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights
starts from     work_dirs/quickstart/pretrain_mlp, the exported warm-up: make quickstart
data            generated images with questions, half of which need the resolution
hardware        2 CPU cores
launch          python tools/train.py configs/toy/toy_finetune_lora.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.update(
    base="work_dirs/quickstart/pretrain_mlp", dtype="float32", gradient_checkpointing=False, freeze_projector=False
)
model.llm_lora.update(r=16, lora_alpha=32, lora_dropout=0.0)
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
optim_wrapper.optimizer.update(lr=1e-3, weight_decay=0.0)
