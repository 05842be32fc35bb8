"""InternVL2-8B, QLoRA: adapters on an LLM in 4 bits.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights, held in 4 bits
starts from     models/InternVL2-8B: hf download OpenGVLab/InternVL2-8B --local-dir models/InternVL2-8B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 24 GB: 16.8 GiB planned; not run yet at this size
launch          xtuner train configs/internvl_v2/internvl_v2_internlm2_5_8b_qlora_finetune.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_qlora import *

model.base = "models/InternVL2-8B"
