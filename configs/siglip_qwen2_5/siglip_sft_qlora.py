"""SigLIP + Qwen2.5-0.5B, as siglip_sft_lora.py with encoder and LLM in 4 bits.

trains          projector, LoRA on q_proj, k_proj, v_proj, o_proj of the LLM
frozen          vision encoder and the LLM's own weights, both held in 4 bits
starts from     exports/siglip_pretrain, the exported warm-up
data            LLaVA-Instruct-150K on COCO train2017
hardware        1 GPU of 16 GB: 3.1 GiB planned; not run yet at this size
launch          xtuner train configs/siglip_qwen2_5/siglip_sft_qlora.py
"""

from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from ..finetune_qlora import *

model.update(
    base="exports/siglip_pretrain",
    freeze_projector=False,
    visual_encoder_quantization=dict(
        type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
)
model.llm_lora.update(r=64, lora_alpha=16)
model.llm_lora.target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]  # None: every linear layer of a block
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct-150K/llava_instruct_150k.json"],
    image_folders=["data/coco/train2017"],
    max_tiles=1,  # the whole image at 384 x 384: 169 tokens
    max_length=1024,  # tokens; the image takes 169
)
train_dataloader.batch_size = 8  # x 4 accumulation x 1 GPU = 32 samples per step
optim_wrapper.accumulative_counts = 4
optim_wrapper.optimizer.update(lr=1e-4, weight_decay=0.0)
train_cfg.max_epochs = 5
