"""InternVL3-8B, MPO: all parts learn from MMPR's pairs, with the settings of the authors' script.

trains          vision encoder, projector, LLM
frozen          nothing
starts from     models/InternVL3-8B-Instruct:
                hf download OpenGVLab/InternVL3-8B-Instruct --local-dir models/InternVL3-8B-Instruct
data            preference pairs; of MMPR-v1.2 its meta.json, with image_folders=None (docs/preference.md)
hardware        8 GPUs of 40 GB: 35.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v3/internvl_v3_qwen2_5_8b_mpo.py
                --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_mpo_full import *

model.update(base="models/InternVL3-8B-Instruct", drop_path=0.1)
train_dataloader.dataset.update(
    data_paths=["data/mmpr/pairs.jsonl"],
    image_folders=["data/mmpr/images"],
    max_length=24576,  # prompt and both answers; the authors have 12288 for a prompt with one
)
optim_wrapper.optimizer.lr = 2e-7
