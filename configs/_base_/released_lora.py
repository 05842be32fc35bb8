"""LoRA on a released InternVL model with LLaVA-1.5's instructions, by XTuner's schedule for these models."""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.llm_lora.update(r=128, lora_alpha=256)
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct/llava_v1_5_mix665k.json"],
    image_folders=["data/LLaVA-Instruct/images"],
    max_length=8192,
)
train_dataloader.batch_size = 8  # x 2 accumulation x 8 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 2
optim_wrapper.optimizer.update(lr=1e-6, weight_decay=0.05)
default_hooks.checkpoint.update(interval=1000, max_keep_ckpts=1)
