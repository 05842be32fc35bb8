"""CLIP ViT-L/14 + Qwen-7B-Chat, LoRA and the projector.

trains          projector, LoRA on some layers (lora_targets) of the LLM
frozen          vision encoder, the LLM's own weights
starts from     models/CLIP-Qwen-7B:
                python tools/build_base_model.py --vision openai/clip-vit-large-patch14 --llm Qwen/Qwen-7B-Chat --out
                models/CLIP-Qwen-7B
data            COCO detail_23k and complex_reasoning_77k, AI Challenger captions (Chinese)
hardware        1 GPU of 40 GB: 23.9 GiB planned; not run yet at this size
launch          xtuner train configs/clip_qwen/clip_qwen_7b_lora.py
less memory     batch_size=1 accumulative_counts=4
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.update(base="models/CLIP-Qwen-7B", freeze_projector=False)
model.llm_lora.update(r=128, lora_alpha=256, lora_dropout=0.1)  # its code has alpha 32, a quarter of the rank
model.llm_lora.target_modules = (
    r".*\.(q_proj|k_proj|v_proj|up_proj|gate_proj)"  # c_attn|w1|w2 in the first Qwen's names
)
train_dataloader.dataset.update(
    data_paths=[
        "data/LLaVA-Instruct-150K/detail_23k.json",
        "data/LLaVA-Instruct-150K/complex_reasoning_77k.json",
        "data/ai_challenger/train.jsonl",
    ],
    image_folders=["data/coco/train2017", "data/coco/train2017", "data/ai_challenger/images"],
    repeat_times=[1, 1, 0.2],  # one of the five captions of an image
    max_tiles=1,  # the whole image: 256 tokens
    max_length=2048,  # tokens; the image takes 256
)
train_dataloader.batch_size = 4  # x 1 accumulation x 1 GPU = 4 samples per step
optim_wrapper.accumulative_counts = 1
optim_wrapper.paramwise_cfg.part_lr.projector = 1e-4
optim_wrapper.optimizer.update(lr=3e-5, weight_decay=0.0)
train_cfg.max_epochs = 2
default_hooks.checkpoint.update(interval=1000, max_keep_ckpts=5)
