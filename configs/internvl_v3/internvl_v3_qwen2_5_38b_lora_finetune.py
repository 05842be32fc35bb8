"""InternVL3-38B, LoRA: adapters on the LLM.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     models/InternVL3-38B: hf download OpenGVLab/InternVL3-38B --local-dir models/InternVL3-38B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        2 GPUs of 80 GB: 51.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=2 xtuner train configs/internvl_v3/internvl_v3_qwen2_5_38b_lora_finetune.py
                --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.base = "models/InternVL3-38B"
train_dataloader.batch_size = 1  # x 8 accumulation x 2 GPUs = 16 samples per step
optim_wrapper.accumulative_counts = 8
optim_wrapper.optimizer.lr = 5e-5
