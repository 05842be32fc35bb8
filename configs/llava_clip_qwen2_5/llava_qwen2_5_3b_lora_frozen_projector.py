"""LLaVA with Qwen2.5-3B: LoRA on the LLM alone (use_lora, projector frozen).

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     exports/llava_pretrain, the exported stage 1
data            LLaVA-Instruct-150K on COCO train2017 (06-Multimodal-LLM trains on LLaVA-CC3M-Pretrain-595K)
hardware        4 GPUs of 16 GB: 13.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=4 xtuner train configs/llava_clip_qwen2_5/llava_qwen2_5_3b_lora_frozen_projector.py
                --deepspeed deepspeed_zero2
note            --format llava writes what LlavaForConditionalGeneration opens; --adapter-only a PEFT adapter
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_lora import *

model.base = "exports/llava_pretrain"
model.llm_lora.update(r=128, lora_alpha=256)
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct-150K/llava_instruct_150k.json"],
    image_folders=["data/coco/train2017"],
    max_tiles=1,  # the whole image: 576 tokens
    max_length=2048,  # tokens; the image takes 576
)
train_dataloader.num_workers = 10
train_dataloader.batch_size = 4  # x 8 accumulation x 4 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 8
optim_wrapper.optimizer.update(lr=2e-4, weight_decay=0.0)
