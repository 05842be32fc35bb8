"""Stage 2, full fine-tuning: projector and LLM learn from instructions.

trains          projector, LLM (vision encoder too with freeze_visual_encoder=False)
frozen          vision encoder
starts from     exports/pretrain_mlp, the exported stage 1:
                python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 24 GB: 16.1 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/finetune_full.py --deepspeed deepspeed_zero3
less memory     configs/finetune_lora.py
"""

from mmengine.config import read_base

with read_base():
    from ._base_.run import *

model.update(base="exports/pretrain_mlp", freeze_llm=False)
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Instruct/llava_v1_5_mix665k.json"],
    image_folders=["data/LLaVA-Instruct/images"],
    max_tiles=12,  # + thumbnail
    max_length=8192,  # tokens; 13 tiles take 3328
)
train_dataloader.sampler.group_by = "length"  # batches of samples of similar length, as the authors do
train_dataloader.batch_size = 4  # x 4 accumulation x 8 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 4
optim_wrapper.optimizer.update(lr=4e-5, weight_decay=0.01)
