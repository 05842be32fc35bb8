"""What a row of the table of recipes is, and the settings that every leaf has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bases import BASES, Base

PARTS = ("visual_encoder", "projector", "llm")


@dataclass(frozen=True)
class Commented:
    """A setting's value with the comment behind it."""

    value: Any
    comment: str


@dataclass(frozen=True)
class Data:
    """Training data as a recipe names it.

    Attributes:
        text: line of the docstring.
        paths: annotation files.
        folders: image folder of each.
        num_samples: records in all files as published, rounded; None where nobody has counted.
    """

    text: str
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    num_samples: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A leaf of `configs/`.

    Attributes:
        stem: name of the file.
        title: first line of the docstring.
        data: what it trains on.
        base: key of `BASES`, whose architecture it trains.
        starts_from: directory to start from; None is the base's own.
        origin: where that directory comes from, lines of the docstring; None gives the base's commands.
        folder: of the leaf below `configs/`.
        visual_encoder, projector, llm: `frozen`, `all` or `lora`.
        quantized: parts held in 4 bits.
        packed: several samples per row.
        objectives: name to weight of preference objectives; None trains on conversations.
        processes: on one node.
        deepspeed: `--deepspeed` of the launch line.
        hardware: line of the docstring.
        notes: further lines of the docstring by label: a text, or a list of lines.
        settings: values that differ from `SETTINGS`, and comments.
    """

    stem: str
    title: str
    data: Data
    base: str
    starts_from: str | None = None
    origin: tuple[str, ...] | None = None
    folder: str = ""
    visual_encoder: str = "frozen"
    projector: str = "all"
    llm: str = "frozen"
    quantized: tuple[str, ...] = ()
    packed: bool = False
    objectives: Mapping[str, float] | None = None
    processes: int = 1
    deepspeed: str | None = None
    hardware: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Base:
        """The published model at its true size."""
        return BASES[self.base]

    @property
    def path(self) -> str:
        """Of the leaf in the checkout."""
        return "/".join(filter(None, ("configs", self.folder, f"{self.stem}.py")))

    @property
    def launch(self) -> str:
        """Command that starts it."""
        if self.folder == "toy":
            return f"python tools/train.py {self.path}"
        processes = f"NPROC_PER_NODE={self.processes} " if self.processes > 1 else ""
        deepspeed = f" --deepspeed {self.deepspeed}" if self.deepspeed else ""
        return f"{processes}xtuner train {self.path}{deepspeed}"

    @property
    def free_parts(self) -> list[str]:
        """Parts that a leaf's ``freeze_*`` settings may freeze or train whole: those without adapters and packing."""
        return [part for part in PARTS if getattr(self, part) != "lora" and part not in self.quantized]

    def parts(self, state: str) -> list[str]:
        """Parts in a state (`all`, `lora`, `frozen`), in the order of a sample's way."""
        return [part for part in PARTS if getattr(self, part) == state]


# Settings in the order of a leaf; an empty name is an empty line. A recipe's own values replace these.
SETTINGS: dict[str, Any] = {
    "max_tiles": Commented(12, "+ thumbnail"),
    "max_length": Commented(4096, "tokens; 13 tiles take 3328"),
    "augment": Commented(None, '{"jpeg_quality": (75, 100)}: as the official recipe; docs/data.md'),
    "backend_args": Commented(None, "options of stores and MMEngine's backends: docs/data.md"),
    "template": Commented(None, "None: the one that the base names"),
    "repeat_times": Commented(None, "how often each file is used per epoch"),
    "dtype": Commented("auto", "bfloat16 where the device has it, float16 on older GPUs"),
    "gradient_checkpointing": Commented(True, "less memory, one more forward pass; of LLM and encoder"),
    "visual_encoder_checkpointing": Commented(None, "None: as above; False, True, or 4: blocks in groups of four"),
    "projector_checkpointing": Commented(False, "the projector's activations too"),
    "compile_blocks": Commented(False, "True: torch.compile, faster after some minutes; not with ZeRO-3 or 4 bits"),
    "row_multiple": Commented(128, "tokens; a row on a GPU is filled up to a multiple"),
    "freeze_visual_encoder": Commented(None, "False trains the encoder whole"),  # these follow the row's parts
    "visual_encoder_last_layers": Commented(None, "4: the last four blocks of a frozen encoder train"),
    "freeze_projector": None,
    "freeze_llm": Commented(None, "False trains the LLM whole"),
    "train_head": Commented(False, "the head of a frozen LLM"),
    "train_new_tokens": Commented(False, "rows of the image and grounding tokens of a frozen LLM"),
    "lora_rank": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "lora_targets": Commented(None, "None: every linear layer of a block; or names, or a regular expression"),
    "visual_encoder_lora_rank": Commented(64, "the encoder's own adapters"),
    "visual_encoder_lora_alpha": 128,
    "visual_encoder_lora_dropout": 0.05,
    "visual_encoder_lora_targets": Commented(None, "as lora_targets"),
    "use_rslora": Commented(False, "scales by lora_alpha / sqrt(lora_rank)"),
    "use_dora": Commented(False, "learns the size of each weight row apart from its direction"),
    "quant_type": "nf4",
    "objectives": None,  # of a row with objectives, these
    "beta": Commented(0.1, "scale of rewards: the larger, the nearer to the reference"),
    "label_smoothing": Commented(0.0, "of dpo: share of pairs whose labels may be swapped"),
    "reward_per_token": Commented(False, "True: rewards of mean log probabilities, which don't grow with the length"),
    "simpo_margin": Commented(0.5, "of simpo"),
    "precompute_reference": Commented(False, "True: of the reference, once; kept in work_dirs/reference"),
    "pack_tokens": 8192,
    "pack_tiles": 26,
    "batch_size": 1,
    "accumulative_counts": Commented(16, "micro-batches of an optimizer step"),
    "num_workers": 4,
    "max_epochs": 1,
    "max_steps": Commented(None, "optimizer steps; ends the run before max_epochs"),
    "heaviest_first": Commented(False, "True tries the largest batch before the first step"),
    "optimizer": Commented("adamw", "or adamw_8bit, paged_adamw_8bit, paged_adamw_32bit"),
    "lr": 1e-4,
    "visual_encoder_lr": Commented(None, "None: lr, here and below"),
    "projector_lr": None,
    "llm_lr": None,
    "lora_lr": None,
    "loraplus_lr_ratio": Commented(1, "16 is LoRA+: B matrices learn so many times as fast as A"),
    "visual_encoder_layer_decay": Commented(1.0, "factor on the learning rate per block, from the last to the first"),
    "betas": (0.9, 0.999),
    "weight_decay": Commented(0.0, "not on norms and biases"),
    "max_grad_norm": 1.0,
    "warmup_ratio": Commented(0.03, "share of the optimizer steps"),
    "val_data_paths": Commented([], "annotation files to validate on; none by default"),
    "val_image_folders": Commented(None, "as image_folders; None: paths are relative to the file"),
    "val_interval": Commented(500, "optimizer steps; also at the end of the run"),
    "val_batch_size": 4,
    "val_benchmarks": Commented([], "files as tools/evaluate.py takes, answered and measured then"),
    "val_benchmark_images": Commented(None, "their image folder; None: that of each file"),
    "val_benchmark_limit": Commented(None, "questions of each; None: all"),
    "val_metric": Commented(None, "of val_benchmarks; None: each one's own"),
    "panel": Commented(None, "questions answered then: a jsonl file, or a list of {image, question}"),
    "panel_max_new_tokens": 128,
    "save_steps": Commented(500, "optimizer steps"),
    "save_total_limit": Commented(2, "checkpoints kept"),
    "tracker": Commented("tensorboard", "or wandb, swanlab, mlflow, none"),
}


def setting_of(recipe: Recipe, name: str) -> Any:
    """A setting's value in a recipe."""
    if name == "objectives":
        return dict(recipe.objectives or {})
    part = name.removeprefix("freeze_")
    if part in PARTS and name not in recipe.settings:
        return getattr(recipe, part) != "all"
    setting = recipe.settings.get(name, SETTINGS[name])
    return setting.value if isinstance(setting, Commented) else setting


def batch_settings(size: int, accumulation: int, processes: int, unit: str = "samples") -> dict[str, Any]:
    """`batch_size` and `accumulative_counts`, with the samples of a step in the comment."""
    gpus = f"{processes} GPU" + ("s" if processes > 1 else "")
    total = size * accumulation * processes
    return {
        "batch_size": Commented(size, f"x {accumulation} accumulation x {gpus} = {total} {unit} per step"),
        "accumulative_counts": Commented(accumulation, "micro-batches of an optimizer step"),
    }


MPO = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # as its authors mix them
PLANNED = "planned; not run yet at this size"
