"""Mini-InternVL-Chat-2B-V1-5, QLoRA: adapters on an LLM in 4 bits.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights, held in 4 bits
starts from     models/Mini-InternVL-Chat-2B-V1-5:
                hf download OpenGVLab/Mini-InternVL-Chat-2B-V1-5 --local-dir models/Mini-InternVL-Chat-2B-V1-5
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 16 GB: 5.5 GiB planned; not run yet at this size
launch          xtuner train configs/internvl_v1_5/internvl_v1_5_internlm2_2b_qlora_finetune.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_qlora import *

model.base = "models/Mini-InternVL-Chat-2B-V1-5"
train_dataloader.dataset.max_length = 4096
optim_wrapper.optimizer.weight_decay = 0.01
