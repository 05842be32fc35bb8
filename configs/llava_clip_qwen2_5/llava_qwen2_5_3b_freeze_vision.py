"""LLaVA with Qwen2.5-3B: projector and LLM whole (freeze_vision).

trains          projector, LLM
frozen          vision encoder
starts from     exports/llava_pretrain, the exported stage 1
data            LLaVA-Instruct-150K on COCO train2017 (06-Multimodal-LLM trains on LLaVA-CC3M-Pretrain-595K)
hardware        4 GPUs of 40 GB: 27.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=4 xtuner train configs/llava_clip_qwen2_5/llava_qwen2_5_3b_freeze_vision.py
                --deepspeed deepspeed_zero2
note            --format llava writes what LlavaForConditionalGeneration opens; --adapter-only a PEFT adapter
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_full import *

model.base = "exports/llava_pretrain"
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct-150K/llava_instruct_150k.json"],
    image_folders=["data/coco/train2017"],
    max_tiles=1,  # the whole image: 576 tokens
    max_length=2048,  # tokens; the image takes 576
)
train_dataloader.num_workers = 10
train_dataloader.batch_size = 4  # x 8 accumulation x 4 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 8
optim_wrapper.optimizer.update(lr=2e-5, weight_decay=0.0)
