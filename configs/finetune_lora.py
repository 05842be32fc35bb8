"""LoRA fine-tuning of a released model on one's own jsonl: the LLM learns through low-rank adapters.

trains          LoRA on every linear layer of the LLM
frozen          vision encoder, projector, the LLM's own weights
starts from     models/InternVL3_5-2B: hf download OpenGVLab/InternVL3_5-2B --local-dir models/InternVL3_5-2B
data            data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images
hardware        1 GPU of 16 GB: 10.3 GiB planned; not run yet at this size
launch          xtuner train configs/finetune_lora.py
less memory     max_tiles=6 max_length=2560
note            after stage 1 alone the projector should go on: freeze_projector=False projector_lr=2e-5
"""

from mmengine.config import read_base
from peft import LoraConfig

with read_base():
    from ._base_.run import *

model.update(
    base="models/InternVL3_5-2B",
    freeze_projector=True,
    llm_lora=dict(type=LoraConfig, r=16, lora_alpha=32, lora_dropout=0.05),  # r=64 to 128 from about 100,000 records
)
train_dataloader.dataset.update(
    data_paths=["data/mine/train.jsonl"],
    image_folders=["data/mine/images"],
    max_tiles=12,  # + thumbnail
    max_length=8192,  # tokens; 13 tiles take 3328
)
train_dataloader.sampler.update(group_by="length", group_size=8)  # alike in a batch, mixed in a step
train_dataloader.batch_size = 2  # x 8 accumulation x 1 GPU = 16 samples per step
optim_wrapper.accumulative_counts = 8
# The authors use the rate of full tuning, 2e-5; LoRA's best rate is about ten times as high.
optim_wrapper.optimizer.update(lr=1e-4, weight_decay=0.05)
train_cfg.max_epochs = 1  # 3 below about 5,000 records
