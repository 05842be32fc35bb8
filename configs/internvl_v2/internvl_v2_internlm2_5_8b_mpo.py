"""InternVL2-8B, MPO: all parts learn from MMPR's pairs, with the settings of the authors' script.

trains          vision encoder, projector, LLM
frozen          nothing
starts from     models/InternVL2-8B: hf download OpenGVLab/InternVL2-8B --local-dir models/InternVL2-8B
data            preference pairs; of MMPR its meta.json, with image_folders=None (docs/preference.md)
hardware        8 GPUs of 40 GB: 29.5 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v2/internvl_v2_internlm2_5_8b_mpo.py
                --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_mpo_full import *

model.update(base="models/InternVL2-8B", drop_path=0.1)
train_dataloader.dataset.update(
    data_paths=["data/mmpr/pairs.jsonl"],
    image_folders=["data/mmpr/images"],
    max_length=12288,  # prompt and both answers; the authors have 6144 for a prompt with one
)
