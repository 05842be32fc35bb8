"""InternVL3-14B, LoRA: adapters on the LLM, the projector whole.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights
starts from     models/InternVL3-14B: hf download OpenGVLab/InternVL3-14B --local-dir models/InternVL3-14B
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v3/internvl_v3_qwen2_5_14b_lora_finetune.py
                --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from .._base_.released_lora import *

model.base = "models/InternVL3-14B"
train_dataloader.batch_size = 2  # x 4 accumulation x 8 GPUs = 64 samples per step
optim_wrapper.accumulative_counts = 4
