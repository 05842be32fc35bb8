"""InternVL2-4B, QLoRA: adapters on an LLM in 4 bits, the projector whole.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights, held in 4 bits
starts from     models/InternVL2-4B: hf download OpenGVLab/InternVL2-4B --local-dir models/InternVL2-4B
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v2/internvl_v2_phi3_4b_qlora_finetune.py
                --deepspeed deepspeed_zero1
"""

from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from .._base_.released_lora import *

model.base = "models/InternVL2-4B"
model.llm_quantization = dict(
    type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
