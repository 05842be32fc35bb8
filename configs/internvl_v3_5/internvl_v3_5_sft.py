"""InternVL3.5-8B, the authors' fine-tuning from the pre-trained model; not for one's own data (finetune_lora is).

trains          vision encoder, projector, LLM
frozen          nothing
starts from     models/InternVL3_5-8B-Pretrained:
                hf download OpenGVLab/InternVL3_5-8B-Pretrained --local-dir models/InternVL3_5-8B-Pretrained
data            LLaVA-1.5 instructions stand in for the authors' data, which are not published
hardware        8 GPUs of 80 GB: 48.3 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v3_5/internvl_v3_5_sft.py --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_packed import *

model.update(base="models/InternVL3_5-8B-Pretrained", freeze_visual_encoder=False, drop_path=0.1)
train_dataloader.dataset.max_length = 32768
train_dataloader.batch_sampler.update(max_tokens=32768, max_tiles=96)
train_dataloader.batch_size = 1  # x 64 accumulation x 8 GPUs = 512 packs per step
optim_wrapper.accumulative_counts = 64
optim_wrapper.optimizer.update(lr=8e-5, weight_decay=0.05)
train_cfg.max_iters = 8000
