"""QLoRA fine-tuning on one's own jsonl: as configs/finetune_lora.py, with the LLM's linear layers in 4 bits.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights, held in 4 bits (NF4 with double quantization)
starts from     models/InternVL3_5-2B: hf download OpenGVLab/InternVL3_5-2B --local-dir models/InternVL3_5-2B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 16 GB: 8.2 GiB planned; not run yet at this size
launch          xtuner train configs/finetune_qlora.py
less memory     max_tiles=6 max_length=2560
"""

from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from .finetune_lora import *

model.llm_quantization = dict(
    type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
