"""DPO with LoRA: a tuned model learns to prefer the chosen answers of one's own pairs.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     exports/mine, an exported fine-tuned model, or any official InternVL directory:
                python tools/convert_to_official.py configs/finetune_lora.py CHECKPOINT exports/mine
data            data/mine/pairs.jsonl, one prompt with a chosen and a rejected answer per line (docs/preference.md)
hardware        1 GPU of 16 GB: 8.0 GiB planned; not run yet at this size
launch          xtuner train configs/finetune_dpo_lora.py
less memory     max_tiles=6 max_length=2560
"""

from mmengine.config import read_base

from xtuner_plugins.datasets import PreferenceDataset, collate_pairs
from xtuner_plugins.engine import PrecomputedReferenceHook
from xtuner_plugins.models import PreferenceModel

with read_base():
    from .finetune_lora import *

model.update(
    type=PreferenceModel,
    base="exports/mine",
    objectives=dict(dpo=1.0),  # against the model that it starts from
    beta=0.1,  # scale of rewards: the larger, the nearer to the reference
)
train_dataloader.collate_fn.type = collate_pairs
train_dataloader.sampler.group_by = None  # pairs come in random order, as the authors' do
train_dataloader.dataset.update(type=PreferenceDataset, data_paths=["data/mine/pairs.jsonl"])
train_dataloader.batch_size = 1  # x 32 accumulation x 1 GPU = 32 samples per step
optim_wrapper.accumulative_counts = 32
optim_wrapper.optimizer.lr = 1e-5
default_hooks.update(
    reference=dict(type=PrecomputedReferenceHook),  # with precomputed_reference=True
)
