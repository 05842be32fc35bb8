"""Flash, stage 2: the router learns which tiles serve with a quarter of their tokens; all else is frozen.

trains          the router (pooling_before_gating, gating)
frozen          vision encoder, both projectors, the LLM, held in 4 bits
starts from     exports/flash_consistency, the exported stage 1:
                python tools/convert_to_official.py configs/flash_consistency.py CHECKPOINT exports/flash_consistency
data            data/mine/train.jsonl, as stage 1
hardware        1 GPU of 16 GB: 13.2 GiB planned; not run yet at this size
launch          xtuner train configs/flash_router.py
less memory     max_length=4096 max_tiles=6
note            flash_exact_labels=True labels each tile, in T + 2 passes instead of 2; see label_agreement in the log
"""

from mmengine.config import read_base

from xtuner_plugins.models import FlashRouterModel

with read_base():
    from .finetune_qlora import *

model.update(type=FlashRouterModel, base="exports/flash_consistency", llm_lora=None)
train_dataloader.dataset.loss_reduction = "sample"  # each sample weighs the same, however long its answer
train_dataloader.batch_size = 1  # x 16 accumulation x 1 GPU = 16 samples per step
optim_wrapper.accumulative_counts = 16
