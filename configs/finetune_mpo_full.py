"""MPO, full: all parts learn from pairs what is better, what is good, and how it is written.

trains          vision encoder, projector, LLM
frozen          nothing
starts from     exports/mine, an exported fine-tuned model, or any official InternVL directory:
                python tools/convert_to_official.py configs/finetune_lora.py CHECKPOINT exports/mine
data            data/mine/pairs.jsonl, one prompt with a chosen and a rejected answer per line (docs/preference.md)
hardware        8 GPUs of 16 GB: 12.5 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/finetune_mpo_full.py --deepspeed deepspeed_zero3
less memory     configs/finetune_dpo_lora.py, which suits a first try, too
"""

from mmengine.config import read_base

from xtuner_plugins.datasets import PreferenceDataset, collate_pairs
from xtuner_plugins.engine import PrecomputedReferenceHook
from xtuner_plugins.models import PreferenceModel

with read_base():
    from .finetune_full import *

model.update(
    type=PreferenceModel,
    base="exports/mine",
    freeze_visual_encoder=False,
    precomputed_reference=True,  # no copy of the model; ZeRO-3 splits all of it
    objectives=dict(dpo=0.8, bco_pair=0.2, sft=1.0),  # as its authors mix them, against the model that it starts from
    beta=0.1,  # scale of rewards: the larger, the nearer to the reference
)
train_dataloader.collate_fn.type = collate_pairs
train_dataloader.sampler.group_by = None  # pairs come in random order, as the authors' do
train_dataloader.dataset.update(
    type=PreferenceDataset, data_paths=["data/mine/pairs.jsonl"], image_folders=["data/mine/images"]
)
train_dataloader.batch_size = 1  # x 32 accumulation x 8 GPUs = 256 samples per step
optim_wrapper.accumulative_counts = 32
optim_wrapper.optimizer.update(lr=5e-6, weight_decay=0.05)
default_hooks.update(
    reference=dict(type=PrecomputedReferenceHook),
)
