"""InternVL2-2B, LoRA: adapters on the LLM, the projector whole.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights
starts from     models/InternVL2-2B: hf download OpenGVLab/InternVL2-2B --local-dir models/InternVL2-2B
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v2/internvl_v2_internlm2_2b_lora_finetune.py
                --deepspeed deepspeed_zero1
"""

from mmengine.config import read_base

with read_base():
    from .._base_.released_lora import *

model.base = "models/InternVL2-2B"
