"""Mini-InternVL-Chat-2B-V1-5, full fine-tuning: projector and LLM; the vision encoder joins on request.

trains          projector, LLM (vision encoder too with freeze_visual_encoder=False)
frozen          vision encoder
starts from     models/Mini-InternVL-Chat-2B-V1-5:
                hf download OpenGVLab/Mini-InternVL-Chat-2B-V1-5 --local-dir models/Mini-InternVL-Chat-2B-V1-5
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 24 GB: 20.9 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v1_5/internvl_v1_5_internlm2_2b_finetune.py
                --deepspeed deepspeed_zero1
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_full import *

model.update(base="models/Mini-InternVL-Chat-2B-V1-5", drop_path=0.1)  # for an encoder that trains
train_dataloader.dataset.max_length = 4096
train_dataloader.batch_size = 4  # x 4 accumulation x 8 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 4
optim_wrapper.optimizer.update(lr=4e-5, weight_decay=0.01)
default_hooks.checkpoint.update(interval=1000, max_keep_ckpts=1)
