"""Flash, stage 1: a second projector learns to give an 8B model tiles at a quarter of their tokens.

trains          the second projector (mlp2)
frozen          vision encoder, projector, router, the LLM, held in 4 bits: answers without compression stay as they are
starts from     models/InternVL3_5-8B-Flash-base: python tools/build_base_model.py --flash
                --vision models/InternVL3_5-8B --llm models/InternVL3_5-8B --projector models/InternVL3_5-8B
                --out models/InternVL3_5-8B-Flash-base
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 24 GB: 16.0 GiB planned; not run yet at this size
launch          xtuner train configs/flash_consistency.py
less memory     max_length=4096 max_tiles=6
note            images of one tile save nothing later, so data with several tiles per image teach most (docs/flash.md)
"""

from mmengine.config import read_base

from xtuner_plugins.models import FlashConsistencyModel

with read_base():
    from .finetune_qlora import *

model.update(type=FlashConsistencyModel, base="models/InternVL3_5-8B-Flash-base", llm_lora=None)
train_dataloader.batch_size = 1  # x 16 accumulation x 1 GPU = 16 samples per step
optim_wrapper.accumulative_counts = 16
optim_wrapper.optimizer.lr = 2e-5  # of mlp2, which begins as mlp1 on pooled tokens: 3e-4 made it worse (docs/flash.md)
