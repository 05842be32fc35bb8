"""SigLIP + Qwen2.5-0.5B, third stage: DPO with LoRA on pairs of answers.

trains          LoRA on q_proj, k_proj, v_proj, o_proj of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     exports/siglip_sft_lora, the exported fine-tuning
data            data/mine/pairs.jsonl, one prompt with a chosen and a rejected answer per line (docs/preference.md)
hardware        1 GPU of 16 GB: 4.2 GiB planned; not run yet at this size
launch          xtuner train configs/siglip_qwen2_5/siglip_dpo_lora.py
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_dpo_lora import *

model.base = "exports/siglip_sft_lora"
model.llm_lora.update(r=64, lora_alpha=16)
model.llm_lora.target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]  # None: every linear layer of a block
train_dataloader.dataset.update(
    max_tiles=1,  # the whole image at 384 x 384: 169 tokens
    max_length=1024,  # tokens; the image takes 169
)
train_dataloader.batch_size = 8  # x 4 accumulation x 1 GPU = 32 samples per step
optim_wrapper.accumulative_counts = 4
