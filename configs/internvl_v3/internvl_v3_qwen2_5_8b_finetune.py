"""InternVL3-8B, full fine-tuning: projector and LLM; the vision encoder joins on request.

trains          projector, LLM (vision encoder too with freeze_visual_encoder=False)
frozen          vision encoder
starts from     models/InternVL3-8B: hf download OpenGVLab/InternVL3-8B --local-dir models/InternVL3-8B
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 80 GB: 53.2 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v3/internvl_v3_qwen2_5_8b_finetune.py
                --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_full import *

model.base = "models/InternVL3-8B"
train_dataloader.batch_size = 4  # x 4 accumulation x 8 GPUs = 128 samples per step
optim_wrapper.accumulative_counts = 4
optim_wrapper.optimizer.update(lr=2e-5, weight_decay=0.05)
default_hooks.checkpoint.update(interval=1000, max_keep_ckpts=1)
