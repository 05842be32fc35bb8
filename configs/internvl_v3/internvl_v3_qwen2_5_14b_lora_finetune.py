"""InternVL3-14B, LoRA: adapters on the LLM.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     models/InternVL3-14B: hf download OpenGVLab/InternVL3-14B --local-dir models/InternVL3-14B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 80 GB: 45.2 GiB planned; not run yet at this size
launch          xtuner train configs/internvl_v3/internvl_v3_qwen2_5_14b_lora_finetune.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.base = "models/InternVL3-14B"
