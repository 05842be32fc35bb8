"""Stage 1.5: vision encoder and projector learn together from captions, the LLM stays frozen.

trains          vision encoder, projector
frozen          LLM
starts from     exports/pretrain_mlp, the exported stage 1:
                python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp
data            LLaVA-Pretrain 558K (blip_laion_cc_sbu_558k.json and its images)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/pretrain_vit_mlp.py
less memory     batch_size=1 accumulative_counts=32
"""

from mmengine.config import read_base

with read_base():
    from .pretrain_mlp import *

model.update(base="exports/pretrain_mlp", freeze_visual_encoder=False)
train_dataloader.batch_size = 2  # x 16 accumulation x 8 GPUs = 256 samples per step
optim_wrapper.optimizer.lr = 1e-5
optim_wrapper.paramwise_cfg.update(
    part_lr=dict(projector=2e-4),
    visual_encoder_layer_decay=0.9,  # factor on the learning rate per block, from the last to the first
)
