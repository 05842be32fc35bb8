"""SigLIP + Qwen2.5-0.5B, warm-up of the projector on captions.

trains          projector
frozen          vision encoder, LLM
starts from     models/SigLIP-Qwen2.5-0.5B:
                python tools/build_base_model.py --vision google/siglip-so400m-patch14-384 --llm
                Qwen/Qwen2.5-0.5B-Instruct --projector-type bilinear_mlp --out models/SigLIP-Qwen2.5-0.5B
data            LLaVA-CC3M-Pretrain-595K (chat.json and its images)
hardware        1 GPU of 16 GB: 6.8 GiB planned; not run yet at this size
launch          xtuner train configs/siglip_qwen2_5/siglip_pretrain.py
"""

from mmengine.config import read_base

with read_base():
    from ..pretrain_mlp import *

model.base = "models/SigLIP-Qwen2.5-0.5B"
train_dataloader.dataset.update(
    data_paths=["data/LLaVA-CC3M-Pretrain-595K/chat.json"],
    image_folders=["data/LLaVA-CC3M-Pretrain-595K/images"],
    max_tiles=1,  # the whole image at 384 x 384: 169 tokens
    max_length=1024,  # tokens; the image takes 169
)
train_dataloader.batch_size = 32  # x 8 accumulation x 1 GPU = 256 samples per step
optim_wrapper.accumulative_counts = 8
# LLaVA's rate for this stage, and its one epoch; Mary_mllm has 1e-4 and 5 epochs.
optim_wrapper.optimizer.lr = 1e-3
