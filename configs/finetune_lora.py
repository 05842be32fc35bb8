"""LoRA fine-tuning on one's own jsonl: the projector trains whole, the LLM through low-rank adapters.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights
starts from     exports/pretrain_mlp (the exported stage 1), or any official InternVL directory
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 24 GB planned; not run yet at this size
launch          xtuner train configs/finetune_lora.py
less memory     max_tiles=6 max_length=2560
"""

from mmengine.config import read_base
from peft import LoraConfig

with read_base():
    from ._base_.run import *

model.update(
    base="exports/pretrain_mlp",
    llm_lora=dict(type=LoraConfig, r=64, lora_alpha=128, lora_dropout=0.05),  # target_modules: every linear layer
)
train_dataloader.dataset.update(
    data_paths=["data/mine/train.jsonl"],
    image_folders=["data/mine/images"],
    max_tiles=12,  # + thumbnail
    max_length=4096,  # tokens; 13 tiles take 3328
)
train_dataloader.batch_size = 1  # x 16 accumulation x 1 GPU = 16 samples per step
optim_wrapper.accumulative_counts = 16
optim_wrapper.optimizer.lr = 1e-4
