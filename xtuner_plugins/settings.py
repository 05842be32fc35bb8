"""The settings of a run by their short names, where each stands in a config, and how a config is read.

``--set lr=5e-5`` changes the key ``optim_wrapper.optimizer.lr`` under a name that is quicker to type. There is no other
layer: what a config writes, what ``--set`` and ``--cfg-options`` change and what the run reads is one key.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mmengine.config import Config

# configs/ and tools/ stand beside the package in a checkout, and are installed with it by a wheel (see setup.py).
_HERE = Path(__file__).resolve().parent
IS_INSTALLED = (_HERE / "share").is_dir()
ROOT = _HERE / "share" if IS_INSTALLED else _HERE.parent
CONFIGS = _HERE.parent / ("xtp_configs" if IS_INSTALLED else "configs")
PACKAGE = "xtp_configs"  # configs/ under a name that MMEngine finds: a distribution's own name would not do
LABELS = ("trains", "frozen", "starts from", "data", "hardware", "launch", "less memory", "note")
VALIDATION = "default_hooks.validation"
# What MMEngine's runners and XTuner's command read at the top level of a config.
RUNNER_KEYS = frozenset(
    """model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks custom_imports
    data_preprocessor load_from resume launcher env_cfg log_processor log_level visualizer default_scope randomness
    experiment_name cfg model_wrapper_cfg find_unused_parameters runner_type strategy compile extra_ckpt sync_bn
    model_resource pretrained_model_name_or_path""".split()
)


class ConfigError(ValueError):
    """A config that can't be trained; the message names the key, the value and the remedy."""


class Setting(NamedTuple):
    """A key of the config under a short name, and what it means."""

    key: str
    words: str


_TABLE = """
base model.base official InternVL directory to train from
data_paths train_dataloader.dataset.data_paths annotation files
image_folders train_dataloader.dataset.image_folders one for each file, or one for all
repeat_times train_dataloader.dataset.repeat_times how often each file is used per epoch
max_tiles train_dataloader.dataset.max_tiles + thumbnail
max_length train_dataloader.dataset.max_length tokens; 13 tiles take 3328
loss_reduction train_dataloader.dataset.loss_reduction token, sample or square: how a sample's tokens weigh
template train_dataloader.dataset.template None: the one that the base names
jpeg_quality train_dataloader.dataset.jpeg_quality (75, 100) as the official recipe; docs/data.md
fast_decoding train_dataloader.dataset.fast_decoding True or "auto": faster, a level off here and there
storage_options train_dataloader.dataset.storage_options options of stores; docs/data.md
batch_size train_dataloader.batch_size samples of a micro-batch on each GPU
num_workers train_dataloader.num_workers loading processes of each GPU
pack_tokens train_dataloader.batch_sampler.max_tokens of a pack
pack_tiles train_dataloader.batch_sampler.max_tiles of a pack
freeze_visual_encoder model.freeze_visual_encoder False trains the encoder whole
visual_encoder_last_layers model.visual_encoder_last_layers 4: the last four blocks of a frozen encoder train
freeze_projector model.freeze_projector False trains it
freeze_llm model.freeze_llm False trains the LLM whole
train_head model.train_head the head of a frozen LLM
lora_rank model.llm_lora.r rank of the LLM's adapters
lora_alpha model.llm_lora.lora_alpha their scale times the rank
lora_dropout model.llm_lora.lora_dropout on their input
lora_targets model.llm_lora.target_modules None: every linear layer; names, or a regular expression
use_rslora model.llm_lora.use_rslora scales by lora_alpha / sqrt(lora_rank)
use_dora model.llm_lora.use_dora learns size and direction of a row apart
quant_type model.llm_quantization.bnb_4bit_quant_type nf4 or fp4
dtype model.dtype auto: bfloat16 where the device has it, else float16
gradient_checkpointing model.gradient_checkpointing less memory, one more forward pass
visual_encoder_checkpointing model.visual_encoder_checkpointing None: as gradient_checkpointing
offload_activations model.offload_activations True: inputs of the LLM's blocks in the CPU's memory
drop_path model.drop_path stochastic depth of an encoder that trains
compile_blocks model.compile_blocks torch.compile; not with ZeRO-3 or 4 bits
row_multiple model.row_multiple tokens; a row on a GPU is filled up to a multiple
sequence_parallel model.sequence_parallel GPUs that share each row of tokens: 1, 2, 4 or 8
objectives model.objectives of preference pairs: name to weight
beta model.beta scale of rewards
label_smoothing model.label_smoothing of dpo: share of pairs whose labels may be swapped
reward_per_token model.per_token rewards of mean log probabilities
simpo_margin model.margin of simpo
flash_percentile model.percentile share of the tiles whose label is to compress
flash_window model.window past ratios of losses that the percentile is of
flash_exact_labels model.exact_labels a label for each tile instead of one for each sample; T + 2 passes
precompute_reference model.precomputed_reference of the reference, once; kept in work_dirs/reference
accumulative_counts optim_wrapper.accumulative_counts micro-batches of an optimizer step
optimizer optim_wrapper.optimizer.type AdamW, or AdamW8bit of bitsandbytes, or another that MMEngine registers
lr optim_wrapper.optimizer.lr learning rate at the end of the warm-up
visual_encoder_lr optim_wrapper.paramwise_cfg.part_lr.visual_encoder None: lr
projector_lr optim_wrapper.paramwise_cfg.part_lr.projector None: lr
llm_lr optim_wrapper.paramwise_cfg.part_lr.llm None: lr
lora_lr optim_wrapper.paramwise_cfg.part_lr.lora None: lr
loraplus_lr_ratio optim_wrapper.paramwise_cfg.loraplus_lr_ratio 16: B matrices learn so many times as fast as A
betas optim_wrapper.optimizer.betas of AdamW
weight_decay optim_wrapper.optimizer.weight_decay not on norms and biases
max_grad_norm optim_wrapper.clip_grad.max_norm gradients are clipped to
warmup_ratio param_scheduler.warmup_ratio share of the optimizer steps
max_epochs train_cfg.max_epochs may be a fraction
max_steps train_cfg.max_iters optimizer steps; ends the run before max_epochs
save_steps default_hooks.checkpoint.interval optimizer steps
save_total_limit default_hooks.checkpoint.max_keep_ckpts checkpoints kept
val_data_paths default_hooks.validation.data_paths annotation files to validate on
val_image_folders default_hooks.validation.image_folders None: paths are relative to the file
val_interval default_hooks.validation.interval optimizer steps; also at the end of the run
val_batch_size default_hooks.validation.batch_size of validation
val_benchmarks default_hooks.validation.benchmarks files as tools/evaluate.py takes, answered then
val_benchmark_images default_hooks.validation.benchmark_images their image folder; None: that of each file
val_benchmark_limit default_hooks.validation.benchmark_limit questions of each; None: all
val_max_new_tokens default_hooks.validation.max_new_tokens of an answer
val_metric default_hooks.validation.metric of val_benchmarks; None: each one's own
"""
SETTINGS = {name: Setting(*rest) for name, *rest in (line.split(None, 2) for line in _TABLE.strip().splitlines())}
_LABEL = re.compile(rf"^({'|'.join(LABELS)})  +(\S.*)$", re.MULTILINE)
# Where a dict begins in a text: `{a,b}.jsonl` and `{000..009}.tar` name files.
_DICT = re.compile(r"(?:^|[\[(,\s])(?:\{\s*\}|\{[^,{}]*:|dict\()")
_WRITE = """write a Python literal in quotes, e.g. KEY='{"crop": 1.5}'"""


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str = "", *, n: int = 1, cutoff: float = 0.6, show: Callable = str
) -> str:
    """``did you mean A or B?`` with at most ``n`` of the known names that are nearest; else what is given."""
    close = difflib.get_close_matches(name, known, n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(map(show, close))}?" if close else otherwise


def leaves() -> dict[str, Path]:
    """Every config of configs/ by its stem; bases are none."""
    found = (path for path in sorted(CONFIGS.rglob("*.py")) if path.name != "__init__.py")
    return {path.stem: path for path in found if "_base_" not in path.parts}


def find_config(name: str) -> str:
    """The path of a config that is given by its path, or by the stem of one in configs/.

    Raises:
        ConfigError: There is none; names those whose names are nearest.
    """
    if Path(name).is_file():
        return name
    known = leaves()
    if name in known:
        path = str(known[name])
        return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
    hint = did_you_mean(Path(name).stem, known, "xtp configs lists them", n=3)
    raise ConfigError(f"config {name} does not exist; {hint}")


def labels_of(path: str | Path) -> dict[str, str]:
    """What a config's docstring says, by label (`LABELS`); the first line is the ``title``.

    Raises:
        ConfigError: The file is no Python.
    """
    try:
        doc = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""
    except SyntaxError as error:
        raise _unreadable(str(path), error) from None
    return {"title": doc.partition("\n")[0], **dict(_LABEL.findall(re.sub(r"\n +", " ", doc)))}


def add_config_options(parser: argparse.ArgumentParser, cfg_options: bool = True) -> None:
    """Adds ``--set`` and ``--cfg-options`` to a tool's arguments; both may be given several times (`parse_words`)."""
    several = {"nargs": "+", "action": "extend", "default": []}
    say = "other values for settings, e.g. lr=5e-5 data_paths=a.jsonl,b.jsonl; `xtp configs NAME` lists them"
    parser.add_argument("--set", **several, metavar="NAME=VALUE", help=say)
    if cfg_options:
        say = "other values for keys of the runner, e.g. train_cfg.max_iters=100 or "
        say += "'train_dataloader.dataset.storage_options={\"anon\": True}'"
        parser.add_argument("--cfg-options", **several, metavar="KEY=VALUE", help=say)


def parse_words(settings: Sequence[str] = (), options: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of the runner with their values, of the words of ``--set`` and ``--cfg-options``.

    Args:
        settings: ``NAME=VALUE`` with a short name or a key.
        options: ``KEY=VALUE``.

    Raises:
        ConfigError: A word without ``=``, or a value that can't be read.
    """
    found = {}
    for option, words in (("--set", settings), ("--cfg-options", options)):
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise ConfigError(f"{option} {word}: takes KEY=VALUE pairs, with no space around the =")
            key = SETTINGS[name].key if option == "--set" and name in SETTINGS else name
            found[key] = _read_value(text, f"{option} {word}")
    return found


def _near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    hint = did_you_mean(name, known, cutoff=cutoff, show=lambda near: near if near in SETTINGS else repr(near))
    return hint and f"; {hint}"


def _read_value(text: str, said: str) -> Any:
    """A Python literal; ``a,b`` and ``[a,b]`` as lists of such values, ``true`` and ``false``; else the text itself."""
    try:
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) and not text.startswith("(") else value
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        if _DICT.search(text):
            problem = error.msg if isinstance(error, SyntaxError) else "names stand without quotes, or it is no literal"
            raise ConfigError(f"{said}: {problem}; {_WRITE}") from None
    members = re.split(r",(?![^{}]*\})", text)
    if len(members) == 1 and not text.startswith("["):
        return {"true": True, "false": False}.get(text, text)
    if any(text.count(opening) != text.count(closing) for opening, closing in ("[]", "()")):
        raise ConfigError(f"{said}: its brackets don't match; {_WRITE}")
    members = [member.strip("[]() ") for member in members]
    return [_read_value(member, said) for member in members if member]


def read_config(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """Reads a Python config and changes what the command line says; imports nothing that the config names.

    Args:
        name: Its path, or the stem of a config in configs/.
        changes: Keys of the runner with their values, see `parse_words`. A dict replaces the value that is there.

    Raises:
        ConfigError: No such file, a file that doesn't run, a name that nothing reads, or a key that isn't there.
    """
    from mmengine.config import Config  # not needed for a tool's help

    path = find_config(name)
    if PACKAGE not in sys.modules:  # a checkout that isn't installed, and always the configs beside this code
        spec = importlib.util.spec_from_file_location(PACKAGE, CONFIGS / "__init__.py")
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources")  # by which MMEngine looks for packages
            cfg = Config.fromfile(path)
    except Exception as error:  # a config is a Python file and may raise anything
        raise _unreadable(path, error) from error
    _check_strays(cfg)
    own = "train_dataloader.dataset.base"  # stands in what a run has written, and in configs for other loops
    both = {own: changes["model.base"]} if "model.base" in (changes or {}) and value_at(cfg, own) else {}
    for key, value in {**both, **(changes or {})}.items():
        _change(cfg, key, value)
    complete(cfg)
    return cfg


def import_types(cfg: Config) -> None:
    """Imports of a config are lazy: this makes every one of them happen; raises `ConfigError` where one fails."""
    try:
        dict(cfg.items())
    except Exception as error:
        raise _unreadable(cfg.filename, error) from error


def _unreadable(path: str, error: Exception) -> ConfigError:
    line, said = (f":{error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
    problem = f"{type(error).__name__}: {' '.join(said.split())[:300]}"
    if "inheritance chain" in said:  # MMEngine's two kinds of configs
        problem = "`_base_` can't take in a config that is written with imports, nor stand in one"
        problem += "; derive with `with read_base(): from ... import *`"
    return ConfigError(f"config {path}{line} cannot be read: {problem}")


def _check_strays(cfg: Config) -> None:
    """Raises `ConfigError` on a name of the config that looks like a setting, but that nothing reads.

    Other names are helper variables: ``data_root = ...``. So is a short name whose value its key has taken, and a name
    like one that the file reads again. A config of another project's model has names of its own, and one that an
    earlier run has written (XTuner adds its launcher) keeps names whose keys the command line had changed.
    """
    kind = value_at(cfg, "model.type")
    if "launcher" in cfg or not str(getattr(kind, "_module", kind)).startswith(__package__):
        return
    nodes = list(ast.walk(ast.parse(Path(cfg.filename).read_text(encoding="utf-8"))))
    read, written = (
        {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}
        for kind in (ast.Load, ast.Store)
    )
    for name, value in cfg._to_lazy_dict().items():
        if name in RUNNER_KEYS or name in read:
            continue
        hint = _near(name, RUNNER_KEYS, cutoff=0.8)
        like = [name] if name in SETTINGS else difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.85)
        if like and (name in SETTINGS or name in written) and value_at(cfg, SETTINGS[like[0]].key) != value:
            hint = f"; write {SETTINGS[like[0]].key} = ..."
        if hint:
            raise ConfigError(f"config {cfg.filename}: nothing reads {name!r}{hint}")


def typed_nodes(node: Any, key_path: str = "") -> Iterator[tuple[str, dict]]:
    """Every ``dict(type=...)`` below ``node`` with its path, e.g. ``train_dataloader.dataset``."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield key_path, dict(node)
        for key, value in node.items():
            yield from typed_nodes(value, f"{key_path}.{key}" if key_path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from typed_nodes(value, f"{key_path}[{index}]")


def value_at(cfg: Config | Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key, not imported; the default where it isn't there."""
    node = getattr(cfg, "_cfg_dict", cfg)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = dict.__getitem__(node, part)
    return node


def _change(cfg: Config, key: str, value: Any) -> None:
    """Gives a key a value; raises `ConfigError` where nothing reads it, or the config has no such place."""
    *parents, last = parts = key.split(".")
    if key in SETTINGS:
        raise ConfigError(f"{key}: no key of the runner; write {SETTINGS[key].key}=..., or --set {key}=...")
    if parts[0] not in RUNNER_KEYS:
        hint = _near(parts[0], [*SETTINGS, *RUNNER_KEYS]) or "; xtp configs NAME lists the settings"
        raise ConfigError(f"{key}: nothing reads {parts[0]!r}{hint}")
    node = cfg._cfg_dict
    for depth, part in enumerate(parts):
        is_dict, is_last = isinstance(node, dict), depth == len(parents)
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            part = int(part)
        elif not is_dict or (part not in node and not is_last):
            above = ".".join(parts[:depth])
            said = f"{above or 'the config'} {'' if is_dict else f'is {node!r} and '}has no {part!r}"
            whole = ".".join(parts[: depth + is_dict])
            raise ConfigError(f"{key}: {said}{is_dict and _near(part, node) or f'; give all of it: {whole}=...'}")
        if is_last:
            node[part] = copy.deepcopy(value)
        else:
            node = (dict if is_dict else list).__getitem__(node, part)  # an attribute would be imported


def complete(cfg: Mapping[str, Any]) -> None:
    """Fills in what follows from other keys.

    The data's base is the model's, its sampler knows how many ranks share a row, and without workers none persist.

    Raises:
        ConfigError: The data's base is another one than the model's.
    """
    model, loader = cfg.get("model"), cfg.get("train_dataloader")
    if not isinstance(model, dict) or not isinstance(loader, dict):
        return
    if isinstance(data := loader.get("dataset"), dict) and "base" in model:
        bases = model["base"], data.setdefault("base", model["base"])
        if len({os.path.realpath(str(base)) for base in bases}) > 1:
            told = f"is {bases[1]!r}, but the tokenizer is the model's, of model.base={bases[0]!r}"
            raise ConfigError(f"train_dataloader.dataset.base {told}; leave it out, or give both the same")
    ranks, sampler = model.get("sequence_parallel", 1), loader.get("sampler")
    if isinstance(sampler, dict) and ranks != sampler.get("sequence_parallel", 1):
        sampler["sequence_parallel"] = ranks
    if loader.get("num_workers") == 0:
        loader["persistent_workers"] = False


DEEPSPEED = {path.stem: path for path in sorted((_HERE / "deepspeed").glob("*.json"))}


def deepspeed_file(value: str) -> Path:
    """The JSON file that a value of ``--deepspeed`` means: an existing file, else ours of that name.

    XTuner's files of the same names leave the dtype of accumulated gradients to DeepSpeed, which then adds micro-steps
    up in bfloat16.

    Raises:
        ConfigError: Neither.
    """
    path = Path(value) if Path(value).is_file() else DEEPSPEED.get(value)
    if path is None:
        hint = did_you_mean(value, DEEPSPEED, "give a JSON file or one of these", cutoff=0.4)
        raise ConfigError(f"--deepspeed {value}: no such file or name; {hint} (known: {', '.join(DEEPSPEED)})")
    return path


def read_deepspeed(value: str) -> dict[str, Any]:
    """The settings in the file of a value of ``--deepspeed``; raises as `deepspeed_file`, or where it holds none."""
    try:
        return dict(json.loads(deepspeed_file(value).read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"--deepspeed {value}: holds no JSON object of settings: {error}") from None
