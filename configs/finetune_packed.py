"""Stage 2 in packs: as configs/finetune_full.py, several samples in a row of 8192 tokens, hardly any padding.

trains          projector, LLM (vision encoder too with freeze_visual_encoder=False)
frozen          vision encoder
starts from     exports/pretrain_mlp, the exported stage 1:
                python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
hardware        8 GPUs of 16 GB: 10.1 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/finetune_packed.py --deepspeed deepspeed_zero3
less memory     max_length=4096 pack_tokens=4096 pack_tiles=13
note            lengths are measured once, before the first step
"""

from mmengine.config import read_base

from xtuner_plugins.datasets import PackBatchSampler, collate_packed

with read_base():
    from .finetune_full import *

train_dataloader.dataset.update(
    loss_reduction="square",  # a sample with n learned tokens weighs sqrt(n)
    jpeg_quality=(75, 100),  # images take on the artifacts of JPEG, as in the authors' training
)
train_dataloader.update(
    batch_size=1,  # x 4 accumulation x 8 GPUs = 32 packs per step
    batch_sampler=dict(type=PackBatchSampler, max_tokens=8192, max_tiles=26),
    collate_fn=dict(type=collate_packed),
)
train_dataloader.sampler.group_by = None
optim_wrapper.accumulative_counts = 4
