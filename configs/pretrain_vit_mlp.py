"""Stage 1.5: vision encoder and projector learn together from captions, the LLM stays frozen.

trains          vision encoder, projector
frozen          LLM
starts from     exports/pretrain_mlp, the exported stage 1:
                python tools/convert_to_official.py configs/pretrain_mlp.py CHECKPOINT exports/pretrain_mlp
data            LLaVA-Pretrain 558K (blip_laion_cc_sbu_558k.json and its images)
tiles           up to 12 + thumbnail
hardware        8 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=8 xtuner train configs/pretrain_vit_mlp.py
strategies      computed, of a GPU and a step, which computes for 19 s on 8 A100 at 40 %:
                DDP (no --deepspeed)         15.8 GiB of memory,   2.04 GiB received, the launch line's
                --deepspeed deepspeed_zero1  10.8 GiB of memory,   2.55 GiB received
                --deepspeed deepspeed_zero2  10.1 GiB of memory,   8.66 GiB received
                --deepspeed deepspeed_zero3   7.8 GiB of memory, 117.10 GiB received
less memory     batch_size = 1 with accumulative_counts = 32
"""

from mmengine.config import read_base
from mmengine.optim import OptimWrapper

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, collate
from xtuner_plugins.engine import (
    GroupedOptimWrapperConstructor,
    PlannedTrainLoop,
    ValidationHook,
    WarmupCosineLR,
    build_adamw,
)
from xtuner_plugins.models import VisionLanguageModel

with read_base():
    from ._base_.default_runtime import *  # noqa: F403

# ---------------------------------------------------------------- Settings
base = "exports/pretrain_mlp"
data_paths = ["data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"]
image_folders = ["data/LLaVA-Pretrain/images"]
max_tiles = 12  # + thumbnail
max_length = 4096  # tokens; 13 tiles take 3328
augment = None  # {"jpeg_quality": (75, 100)}: as the official recipe; docs/data.md
backend_args = None  # options of stores and MMEngine's backends: docs/data.md
dtype = "auto"  # bfloat16 where the device has it, float16 on older GPUs
gradient_checkpointing = True  # less memory, one more forward pass; of LLM and encoder
visual_encoder_checkpointing = None  # None: as above; False, True, or 4: blocks in groups of four
projector_checkpointing = False  # the projector's activations too
compile_blocks = False  # True: torch.compile, faster after some minutes; not with ZeRO-3 or 4 bits
row_multiple = 128  # tokens; a row on a GPU is filled up to a multiple
freeze_visual_encoder = False  # False trains the encoder whole
visual_encoder_last_layers = None  # 4: the last four blocks of a frozen encoder train
freeze_projector = False
freeze_llm = True  # False trains the LLM whole
train_head = False  # the head of a frozen LLM
train_new_tokens = False  # rows of the image and grounding tokens of a frozen LLM

batch_size = 2  # x 16 accumulation x 8 GPUs = 256 samples per step
accumulative_counts = 16  # micro-batches of an optimizer step
num_workers = 4
max_epochs = 1
max_steps = None  # optimizer steps; ends the run before max_epochs
heaviest_first = False  # True tries the largest batch before the first step
optimizer = "adamw"  # or adamw_8bit, paged_adamw_8bit, paged_adamw_32bit
lr = 1e-5
visual_encoder_lr = None  # None: lr, here and below
projector_lr = 2e-4
llm_lr = None
lora_lr = None
visual_encoder_layer_decay = 0.9
betas = (0.9, 0.999)
weight_decay = 0.0  # not on norms and biases
max_grad_norm = 1.0
warmup_ratio = 0.03  # share of the optimizer steps

val_data_paths = []  # annotation files to validate on; none by default
val_image_folders = None  # as image_folders; None: paths are relative to the file
val_interval = 500  # optimizer steps; also at the end of the run
val_batch_size = 4
val_benchmarks = []  # files as tools/evaluate.py takes, answered and measured then
val_benchmark_images = None  # their image folder; None: that of each file
val_benchmark_limit = None  # questions of each; None: all
val_metric = None  # of val_benchmarks; None: each one's own
panel = None  # questions answered then: a jsonl file, or a list of {image, question}
panel_max_new_tokens = 128

save_steps = 500  # optimizer steps
save_total_limit = 2  # checkpoints kept
tracker = "tensorboard"  # or wandb, swanlab, mlflow, none

# ---------------------------------------------------------------- Wiring
pretrained_model_name_or_path = base
model = dict(
    type=VisionLanguageModel,
    base=base,
    freeze_visual_encoder=freeze_visual_encoder,
    freeze_projector=freeze_projector,
    freeze_llm=freeze_llm,
    visual_encoder_last_layers=visual_encoder_last_layers,
    train_head=train_head,
    train_new_tokens=train_new_tokens,
    dtype=dtype,
    gradient_checkpointing=gradient_checkpointing,
    visual_encoder_checkpointing=visual_encoder_checkpointing,
    projector_checkpointing=projector_checkpointing,
    compile_blocks=compile_blocks,
    row_multiple=row_multiple,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    pin_memory=True,
    persistent_workers=num_workers > 0,
    sampler=dict(type=PlanSampler),
    collate_fn=dict(type=collate),
    dataset=dict(
        type=MultimodalDataset,
        base=base,
        data_paths=data_paths,
        image_folders=image_folders,
        max_tiles=max_tiles,
        max_length=max_length,
        augment=augment,
        backend_args=backend_args,
    ),
)
optim_wrapper = dict(
    type=OptimWrapper,
    constructor=GroupedOptimWrapperConstructor,
    paramwise_cfg=dict(
        part_lr=dict(visual_encoder=visual_encoder_lr, projector=projector_lr, llm=llm_lr, lora=lora_lr),
        visual_encoder_layer_decay=visual_encoder_layer_decay,
        decay_norms_and_biases=False,
    ),
    optimizer=dict(type=build_adamw, name=optimizer, lr=lr, betas=betas, weight_decay=weight_decay),
    clip_grad=dict(max_norm=max_grad_norm),
    accumulative_counts=accumulative_counts,
)
param_scheduler = dict(type=WarmupCosineLR, warmup_ratio=warmup_ratio)  # a linear start, a cosine over the rest
default_hooks.checkpoint.update(interval=save_steps, max_keep_ckpts=save_total_limit)  # noqa: F405
default_hooks.update(  # noqa: F405
    validation=dict(
        type=ValidationHook,
        interval=val_interval,
        data_paths=val_data_paths,  # the rest of the data's settings are the training's
        image_folders=val_image_folders,
        batch_size=val_batch_size,
        benchmarks=val_benchmarks,
        benchmark_images=val_benchmark_images,
        benchmark_limit=val_benchmark_limit,
        metric=val_metric,
        panel=panel,
        panel_max_new_tokens=panel_max_new_tokens,
    )
)
visualizer.update(tracker=tracker)  # noqa: F405
train_cfg = dict(type=PlannedTrainLoop, max_epochs=max_epochs, max_iters=max_steps, heaviest_first=heaviest_first)
