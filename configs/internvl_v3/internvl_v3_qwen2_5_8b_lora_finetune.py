"""InternVL3-8B, LoRA: adapters on the LLM.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     models/InternVL3-8B: hf download OpenGVLab/InternVL3-8B --local-dir models/InternVL3-8B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 40 GB: 26.1 GiB planned; not run yet at this size
launch          xtuner train configs/internvl_v3/internvl_v3_qwen2_5_8b_lora_finetune.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.base = "models/InternVL3-8B"
