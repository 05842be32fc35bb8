"""InternVL3-38B, LoRA: adapters on the LLM, the projector whole.

trains          projector, LoRA on every linear layer of the LLM
frozen          vision encoder, the LLM's own weights
starts from     models/InternVL3-38B:
                hf download OpenGVLab/InternVL3-38B --local-dir models/InternVL3-38B
data            LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)
tiles           up to 12 + thumbnail
hardware        16 GPUs of 80 GB planned; not run yet at this size
launch          NPROC_PER_NODE=16 xtuner train configs/internvl_v3/internvl_v3_qwen2_5_38b_lora_finetune.py \
                    --deepspeed deepspeed_zero3
"""

from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from peft import LoraConfig

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
    from .._base_.default_runtime import *  # noqa: F403

# ---------------------------------------------------------------- Settings
base = "models/InternVL3-38B"
data_paths = ["data/LLaVA-Instruct/llava_v1_5_mix665k.json"]
image_folders = ["data/LLaVA-Instruct/images"]
max_tiles = 12  # + thumbnail
max_length = 8192  # tokens; 13 tiles take 3328
augment = None  # {"jpeg_quality": (75, 100)}: as the official recipe; docs/data.md
backend_args = None  # options of stores and MMEngine's backends: docs/data.md
dtype = "auto"  # bfloat16 where the device has it, float16 on older GPUs
gradient_checkpointing = True  # less memory, one more forward pass; of LLM and encoder
visual_encoder_checkpointing = None  # None: as above; False, True, or 4: blocks in groups of four
projector_checkpointing = False  # the projector's activations too
compile_blocks = False  # True: torch.compile, faster after some minutes; not with ZeRO-3 or 4 bits
row_multiple = 128  # tokens; a row on a GPU is filled up to a multiple
freeze_visual_encoder = True  # False trains the encoder whole
visual_encoder_last_layers = None  # 4: the last four blocks of a frozen encoder train
freeze_projector = False
train_head = False  # the head of a frozen LLM
train_new_tokens = False  # rows of the image and grounding tokens of a frozen LLM
lora_rank = 128
lora_alpha = 256
lora_dropout = 0.05
lora_targets = None  # None: every linear layer of a block; or names, or a regular expression
use_rslora = False  # scales by lora_alpha / sqrt(lora_rank)
use_dora = False  # learns the size of each weight row apart from its direction

batch_size = 2  # x 4 accumulation x 16 GPUs = 128 samples per step
accumulative_counts = 4  # micro-batches of an optimizer step
num_workers = 4
max_epochs = 1
max_steps = None  # optimizer steps; ends the run before max_epochs
heaviest_first = False  # True tries the largest batch before the first step
optimizer = "adamw"  # or adamw_8bit, paged_adamw_8bit, paged_adamw_32bit
lr = 1e-6
visual_encoder_lr = None  # None: lr, here and below
projector_lr = None
llm_lr = None
lora_lr = None
loraplus_lr_ratio = 1  # 16 is LoRA+: B matrices learn so many times as fast as A
visual_encoder_layer_decay = 1.0  # factor on the learning rate per block, from the last to the first
betas = (0.9, 0.999)
weight_decay = 0.05  # not on norms and biases
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

save_steps = 1000  # optimizer steps
save_total_limit = 1  # checkpoints kept
tracker = "tensorboard"  # or wandb, swanlab, mlflow, none

# ---------------------------------------------------------------- Wiring
pretrained_model_name_or_path = base
model = dict(
    type=VisionLanguageModel,
    base=base,
    freeze_visual_encoder=freeze_visual_encoder,
    freeze_projector=freeze_projector,
    freeze_llm=True,
    visual_encoder_last_layers=visual_encoder_last_layers,
    train_head=train_head,
    train_new_tokens=train_new_tokens,
    llm_lora=dict(
        type=LoraConfig,
        r=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=lora_targets,
        use_rslora=use_rslora,
        use_dora=use_dora,
    ),
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
        loraplus_lr_ratio=loraplus_lr_ratio,
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
