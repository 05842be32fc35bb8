"""Stage 1, MLP warm-up: InternViT-300M + Qwen2.5-1.5B, the projector learns to speak the LLM's language.

trains          projector
frozen          vision encoder, LLM
starts from     models/InternViT-300M-Qwen2.5-1.5B:
                python tools/build_base_model.py --vision OpenGVLab/InternViT-300M-448px-V2_5 --llm
                Qwen/Qwen2.5-1.5B-Instruct --out models/InternViT-300M-Qwen2.5-1.5B
data            LLaVA-Pretrain 558K (blip_laion_cc_sbu_558k.json and its images)
hardware        4 GPUs of 16 GB: 9.7 GiB planned; not run yet at this size
launch          NPROC_PER_NODE=4 xtuner train configs/pretrain_mlp.py
less memory     batch_size=1 accumulative_counts=64
"""

from mmengine.config import read_base

with read_base():
    from ._base_.run import *

model.base = "models/InternViT-300M-Qwen2.5-1.5B"
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"],
    image_folders=["data/LLaVA-Pretrain/images"],
    max_tiles=12,  # + thumbnail
    max_length=4096,  # tokens; 13 tiles take 3328
)
train_dataloader.batch_size = 4  # x 16 accumulation x 4 GPUs = 256 samples per step
optim_wrapper.accumulative_counts = 16
optim_wrapper.optimizer.lr = 1e-3  # as LLaVA and InternVL3.5; InternVL2.5 has 2e-4 with 512 packs a step
