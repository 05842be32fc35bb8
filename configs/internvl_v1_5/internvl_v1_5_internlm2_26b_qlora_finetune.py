"""InternVL-Chat-V1-5, QLoRA: adapters on an LLM in 4 bits, the projector whole.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights, held in 4 bits
starts from     models/InternVL-Chat-V1-5:
                hf download OpenGVLab/InternVL-Chat-V1-5 --local-dir models/InternVL-Chat-V1-5
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v1_5/internvl_v1_5_internlm2_26b_qlora_finetune.py
                --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from .._base_.released_lora import *

model.base = "models/InternVL-Chat-V1-5"
model.llm_quantization = dict(
    type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
train_dataloader.dataset.max_length = 4096
optim_wrapper.optimizer.weight_decay = 0.01
train_dataloader.batch_size = 2  # x 4 accumulation x 8 GPUs = 64 samples per step
optim_wrapper.accumulative_counts = 4
