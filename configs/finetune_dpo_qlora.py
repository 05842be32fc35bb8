"""DPO with QLoRA: as configs/finetune_dpo_lora.py, with the LLM's linear layers in 4 bits.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights, held in 4 bits (NF4 with double quantization)
starts from     exports/mine, an exported fine-tuned model, or any official InternVL directory:
                python tools/convert_to_official.py configs/finetune_lora.py CHECKPOINT exports/mine
data            data/mine/pairs.jsonl, one prompt with a chosen and a rejected answer per line (docs/preference.md)
hardware        1 GPU of 16 GB: 5.9 GiB planned; not run yet at this size
launch          xtuner train configs/finetune_dpo_qlora.py
less memory     max_tiles=6 max_length=2560
"""

from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from .finetune_dpo_lora import *

model.llm_quantization = dict(
    type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
