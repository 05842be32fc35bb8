"""LLaVA with Qwen2.5-3B, stage 1: the projector alone learns from captions.

trains          projector
frozen          vision encoder, LLM
starts from     models/LLaVA-Qwen2.5-3B:
                python tools/build_base_model.py --vision openai/clip-vit-large-patch14-336 --llm
                Qwen/Qwen2.5-3B-Instruct --out models/LLaVA-Qwen2.5-3B
data            LLaVA-CC3M-Pretrain-595K (chat.json and its images)
hardware        4 GPUs of 24 GB: 19.1 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=4 xtuner train configs/llava_clip_qwen2_5/llava_pretrain.py
"""

from mmengine.config import read_base

with read_base():
    from ..pretrain_mlp import *

model.base = "models/LLaVA-Qwen2.5-3B"
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-CC3M-Pretrain-595K/chat.json"],
    image_folders=["data/LLaVA-CC3M-Pretrain-595K/images"],
    max_tiles=1,  # the whole image: 576 tokens
    max_length=2048,  # tokens; the image takes 576
)
train_dataloader.num_workers = 10
train_dataloader.batch_size = 16  # x 4 accumulation x 4 GPUs = 256 samples per step
optim_wrapper.accumulative_counts = 4
optim_wrapper.optimizer.lr = 1e-3
