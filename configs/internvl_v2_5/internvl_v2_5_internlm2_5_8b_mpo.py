"""InternVL2_5-8B, MPO: projector and LLM learn from MMPR's pairs; the vision encoder joins on request.

trains          projector, LLM (vision encoder too with freeze_visual_encoder=False)
frozen          vision encoder
starts from     models/InternVL2_5-8B: hf download OpenGVLab/InternVL2_5-8B --local-dir models/InternVL2_5-8B
data            preference pairs; of MMPR-v1.2 its meta.json, with image_folders=None (docs/preference.md)
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/internvl_v2_5/internvl_v2_5_internlm2_5_8b_mpo.py
                --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from ..finetune_mpo_full import *

model.base = "models/InternVL2_5-8B"
train_dataloader.dataset.update(
    data_paths=["data/mmpr/pairs.jsonl"],
    image_folders=["data/mmpr/images"],
    max_length=6544,
)
train_dataloader.batch_size = 1  # x 32 accumulation x 8 GPUs = 256 samples per step
optim_wrapper.optimizer.weight_decay = 0.05
