"""SigLIP-so400m + Qwen-7B-Chat, LoRA and the projector.

trains          projector, LoRA on some layers (lora_targets) of the LLM
frozen          vision encoder, the LLM's own weights
starts from     models/SigLIP-Qwen-7B:
                python tools/build_base_model.py --vision google/siglip-so400m-patch14-384 --llm Qwen/Qwen-7B-Chat --out
                models/SigLIP-Qwen-7B
data            COCO detail_23k and complex_reasoning_77k, AI Challenger captions (Chinese)
hardware        1 GPU of 40 GB: 24.1 GiB planned; not run yet at this size
launch          xtuner train configs/clip_qwen/siglip_qwen_7b_lora.py
less memory     batch_size=1 accumulative_counts=4
"""

from mmengine.config import read_base

with read_base():
    from .clip_qwen_7b_lora import *

model.base = "models/SigLIP-Qwen-7B"  # an image takes 729 tokens
