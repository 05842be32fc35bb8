"""InternVL2_5-1B, LoRA: adapters on the LLM.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     models/InternVL2_5-1B: hf download OpenGVLab/InternVL2_5-1B --local-dir models/InternVL2_5-1B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 16 GB: 5.0 GiB planned; not run yet at this size
launch          xtuner train configs/internvl_v2_5/internvl_v2_5_qwen2_5_1b_lora_finetune.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.base = "models/InternVL2_5-1B"
optim_wrapper.optimizer.weight_decay = 0.01
