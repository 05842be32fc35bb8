"""Stage 1.5: vision encoder and projector learn together to read, the LLM stays frozen.

trains          vision encoder, projector
frozen          LLM
starts from     exports/pretrain_mlp, the exported stage 1:
                python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp
data            TextOCR-GPT4o and ShareGPT-4o; plain captions do not teach an encoder to read
hardware        8 GPUs of 24 GB: 15.8 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/pretrain_vit_mlp.py
less memory     batch_size=1 accumulative_counts=32
"""

from mmengine.config import read_base

with read_base():
    from .pretrain_mlp import *

model.update(base="exports/pretrain_mlp", freeze_visual_encoder=False, drop_path=0.1)
train_dataloader.dataset.update(
    data_paths=["data/textocr-gpt4o/train.jsonl", "data/ShareGPT-4o/image_conversations/gpt-4o.jsonl"],
    image_folders=["data/textocr-gpt4o/images", "data/ShareGPT-4o/images"],
)
train_dataloader.batch_size = 2  # x 16 accumulation x 8 GPUs = 256 samples per step
optim_wrapper.optimizer.update(lr=1e-5, weight_decay=0.05)
optim_wrapper.paramwise_cfg.part_lr.projector = 2e-4  # the authors have 1e-5 here, after a far longer stage 1
