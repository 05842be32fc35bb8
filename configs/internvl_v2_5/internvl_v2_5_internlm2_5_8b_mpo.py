"""InternVL2_5-8B, MPO: all parts learn from MMPR's pairs, with the settings of the authors' script.

trains          vision encoder, projector, LLM
frozen          nothing
starts from     models/InternVL2_5-8B: hf download OpenGVLab/InternVL2_5-8B --local-dir models/InternVL2_5-8B
data            preference pairs; of MMPR-v1.1 its meta.json, with image_folders=None (docs/preference.md)
hardware        8 GPUs of 40 GB: 31.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v2_5/internvl_v2_5_internlm2_5_8b_mpo.py
                --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_mpo_full import *

model.update(base="models/InternVL2_5-8B", drop_path=0.1)
train_dataloader.dataset.update(
    data_paths=["data/mmpr/pairs.jsonl"],
    image_folders=["data/mmpr/images"],
    max_length=16384,  # prompt and both answers; the authors have 8192 for a prompt with one
)
optim_wrapper.optimizer.lr = 1e-6
