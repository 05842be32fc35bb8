"""SigLIP + Qwen2.5-0.5B, the projector alone learns from instructions.

trains          projector
frozen          vision encoder, LLM
starts from     exports/siglip_pretrain, the exported warm-up
data            LLaVA-Instruct-80K and LLaVA-Instruct-150K on COCO train2017
hardware        1 GPU of 16 GB: 4.1 GiB planned; not run yet at this size
launch          xtuner train configs/siglip_qwen2_5/siglip_sft_mlp.py
"""

from mmengine.config import read_base

with read_base():
    from .siglip_pretrain import *

model.base = "exports/siglip_pretrain"
train_dataloader.dataset.update(
    data_paths=[
        "data/LLaVA-Instruct-150K/llava_instruct_80k.json",
        "data/LLaVA-Instruct-150K/llava_instruct_150k.json",
    ],
    image_folders=["data/coco/train2017", "data/coco/train2017"],
)
train_dataloader.batch_size = 8  # x 8 accumulation x 1 GPU = 64 samples per step
optim_wrapper.accumulative_counts = 8
optim_wrapper.optimizer.lr = 1e-4
train_cfg.max_epochs = 5
