"""SigLIP + Qwen2.5-0.5B, projector and LLM whole on 4 GPUs with ZeRO-3.

trains          projector, LLM
frozen          vision encoder
starts from     exports/siglip_pretrain, the exported warm-up
data            LLaVA-Instruct-150K on COCO train2017
hardware        4 GPUs of 16 GB: 8.2 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=4 xtuner train configs/siglip_qwen2_5/siglip_sft_full.py --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_full import *

model.base = "exports/siglip_pretrain"
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct-150K/llava_instruct_150k.json"],
    image_folders=["data/coco/train2017"],
    max_tiles=1,  # the whole image at 384 x 384: 169 tokens
    max_length=1024,  # tokens; the image takes 169
)
train_dataloader.batch_size = 8  # x 1 accumulation x 4 GPUs = 32 samples per step
optim_wrapper.accumulative_counts = 1
optim_wrapper.optimizer.update(lr=2e-5, weight_decay=0.0)
train_cfg.max_epochs = 5
