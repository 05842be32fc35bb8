"""Writes the leaves of `configs/`, their READMEs and the tables of other pages from the table of recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..leaf import literal
from ..planning.hardware import UTILIZATION
from ..planning.memory import GIB
from .bases import ENCODERS, LLMS
from .folders import FOLDERS
from .hardware_table import BEGIN as HARDWARE_BEGIN
from .hardware_table import END as HARDWARE_END
from .hardware_table import render_hardware
from .page import BEGIN, END
from .recipe import PARTS, SETTINGS, Commented, Recipe, setting_of
from .table import RECIPES

# Settings that only some recipes have, by the template's own conditions.
_LORA = {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora", "loraplus_lr_ratio"}
_PACKED = {"pack_tokens", "pack_tiles"}
_OWN_LORA = {f"visual_encoder_{name}" for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")}
_PREFERENCE = {"objectives", "beta", "label_smoothing", "reward_per_token", "simpo_margin"}
_ON_REQUEST = {"template", "repeat_times", *_OWN_LORA}
_OF_FROZEN_LLM = {"train_head", "train_new_tokens"}
_BREAK_BEFORE = {"batch_size", "objectives", "pack_tokens", "val_data_paths", "save_steps"}
_PART_WORDS = {"visual_encoder": "vision encoder", "projector": "projector", "llm": "LLM"}

# The page of all leaves; what stands between the marks is written, the rest is a person's.
PAGES = {"docs/recipes.md": False, "docs/recipes_zh-CN.md": True}
LANDING_PAGES = {"README.md": False, "README_zh-CN.md": True}


def write_recipes(root: str | Path) -> list[Path]:
    """Writes every leaf and README below `root/configs`, and the tables of the pages that exist in `root`.

    Returns:
        The files whose content is new.

    Raises:
        ValueError: A page has lost its marks.
    """
    texts = {recipe.path: render(recipe) for recipe in RECIPES}
    for folder in FOLDERS:
        for name, is_chinese in (("README.md", False), ("README_zh-CN.md", True)):
            texts[f"configs/{folder}/{name}"] = render_readme(folder, is_chinese)
    for name, is_chinese in (PAGES | LANDING_PAGES).items():
        if (Path(root) / name).is_file():
            fill = with_table if name in PAGES else with_hardware
            texts[name] = fill((Path(root) / name).read_text(encoding="utf-8"), is_chinese, name)
    changed = []
    for name, text in texts.items():
        path = Path(root) / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def render(recipe: Recipe) -> str:
    """The text of a leaf."""
    return _template("leaf.py.jinja").render(
        recipe=recipe,
        model="PreferenceModel" if recipe.objectives else "VisionLanguageModel",
        labels=list(_labels(recipe)),
        lora=recipe.parts("lora"),
        settings=list(_settings(recipe)),
        own_lora="visual_encoder_" if _OWN_LORA <= set(recipe.settings) else "",
    )


def render_readme(folder: str, is_chinese: bool = False) -> str:
    """The README of a folder of `configs/`."""
    from .count import count  # imports PyTorch, which a leaf's text doesn't need

    recipes = [recipe for recipe in RECIPES if recipe.folder == folder]
    bases = [
        {
            "lines": [line for command in base.commands for line in wrapped(command)],
            "path": base.path,
            "encoder": ENCODERS[base.encoder].name.partition("/")[2],
            "llm": LLMS[base.llm].name.partition("/")[2],
            "total": count(recipe).total,
        }
        for base, recipe in {recipe.base: (recipe.architecture, recipe) for recipe in recipes}.values()
    ]
    leaves = [
        {
            "stem": recipe.stem,
            "trains": ", ".join(_PART_WORDS[part] for part in recipe.parts("all"))
            + "".join(
                f"{', ' if recipe.parts('all') else ''}LoRA ({_PART_WORDS[part]})" for part in recipe.parts("lora")
            ),
            "count": count(recipe),
            "processes": recipe.processes,
            "strategy": (recipe.deepspeed or "").replace("deepspeed_zero", "ZeRO-")
            or ("DDP" if recipe.processes > 1 else "-"),
        }
        for recipe in recipes
    ]
    return _template("readme.md.jinja").render(folder=FOLDERS[folder], bases=bases, leaves=leaves, zh=is_chinese)


def with_table(page: str, is_chinese: bool = False, name: str = "the page") -> str:
    """A page with the table of all leaves between its marks.

    Raises:
        ValueError: A mark is missing, double, or in the wrong order.
    """
    return _between(page, BEGIN, END, name, lambda: render_table(is_chinese))


def with_hardware(page: str, is_chinese: bool = False, name: str = "the page") -> str:
    """A page with the table of memory between its marks.

    Raises:
        ValueError: A mark is missing, double, or in the wrong order.
    """
    return _between(page, HARDWARE_BEGIN, HARDWARE_END, name, lambda: render_hardware(is_chinese))


def _between(page: str, first: str, last: str, name: str, table: Callable[[], str]) -> str:
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end) or page.count(first) + page.count(last) != 2:
        raise ValueError(f"{name} needs one line {first.strip()} and, below it, one line {last.strip()}")
    return before + begin + table() + end + after


def render_table(is_chinese: bool = False) -> str:
    """The table of all leaves, one row each, as links from `docs/`."""
    from .count import count  # takes torch
    from .plan import planned_hours, planned_memory

    head = (
        "| 叶子 | 参数总数 | 训练的参数 | 权重和优化器 | 每块 GPU | 用时 |"
        if is_chinese
        else "| leaf | parameters | trained | weights and optimizer | each GPU | time |"
    )
    lines = [head, "|---|---|---|---|---|---|"]
    for recipe in sorted(RECIPES, key=lambda recipe: (recipe.folder, recipe.stem)):
        if recipe.folder != "toy":
            of = count(recipe)
            sizes = f"{of.total:,} | {of.trained:,} | {of.gigabytes:.1f} GB"
            hours, gpu = planned_hours(recipe)
            time = "-" if hours is None else f"{hours:.0f} h, {recipe.processes} x {gpu}"
            plan = f"{planned_memory(recipe) / GIB:.0f} GiB | {time}"
            lines.append(f"| [{recipe.stem}](../{recipe.path}) | {sizes} | {plan} |")
    return "\n".join(lines) + "\n"


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("xtuner_plugins.recipes", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # Python and Markdown, not HTML
    )
    return environment.get_template(name)


def _labels(recipe: Recipe) -> Iterator[tuple[str, list[str]]]:
    """Lines of the docstring by their label."""
    trains = [_PART_WORDS[part] for part in recipe.parts("all")]
    trains += [f"LoRA on {_targets(recipe)} of the {_PART_WORDS[part]}" for part in recipe.parts("lora")]
    frozen = [_PART_WORDS[part] for part in recipe.parts("frozen")]
    frozen += [f"the {_PART_WORDS[part]}'s own weights" for part in recipe.parts("lora")]
    if "freeze_visual_encoder" in recipe.settings:
        trains[-1] += " (vision encoder too with freeze_visual_encoder = False)"
    yield "trains", [", ".join(trains)]
    yield "frozen", [", ".join(frozen) or "nothing"]
    if recipe.objectives:
        terms = " + ".join(f"{weight:g} {name}" for name, weight in recipe.objectives.items())
        yield "objective", [f"{terms}, against the model that it starts from"]
    if recipe.quantized:
        words = " and ".join(_PART_WORDS[part] for part in recipe.quantized)
        yield "4 bits", [f"linear layers of the {words} (NF4 with double quantization)"]
    start = recipe.starts_from or recipe.architecture.path
    commands = [piece for command in recipe.architecture.commands for piece in wrapped(command)]
    yield "starts from", list(recipe.origin or (f"{start}:", *commands))
    yield "data", [recipe.data.text]
    tiles = _value(recipe.settings.get("max_tiles", SETTINGS["max_tiles"]))
    yield "tiles", ["1" if tiles == 1 else f"up to {tiles} + thumbnail"]
    yield "hardware", [recipe.hardware]
    yield "launch", wrapped(recipe.launch)
    if recipe.llm == "frozen" and recipe.processes > 1 and " GB " in recipe.hardware:  # imported ones name no card
        yield "strategies", list(_strategies(recipe))
    for label, text in recipe.notes.items():
        if text:
            yield label, [text] if isinstance(text, str) else text


def _strategies(recipe: Recipe) -> Iterator[str]:
    """What each way of spreading a stage with a frozen LLM costs."""
    from .costs import costs
    from .plan import planned_gpu

    found, share = costs(recipe), f"{UTILIZATION:.0%}".replace("%", " %")
    gpus = f"{recipe.processes} {planned_gpu(recipe).name}"
    yield f"computed, of a GPU and a step, which computes for {found[0].seconds:.0f} s on {gpus} at {share}:"
    for cost in found:
        name = f"--deepspeed {cost.deepspeed}" if cost.deepspeed else "DDP (no --deepspeed)"
        chosen = ", the launch line's" if cost.deepspeed == recipe.deepspeed else ""
        yield f"{name:27} {cost.memory / GIB:5.1f} GiB of memory, {cost.received / GIB:6.2f} GiB received{chosen}"


def wrapped(command: str) -> list[str]:
    """A shell command in lines of at most 100 columns."""
    lines = textwrap.wrap(command, 96, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [line + " \\" for line in lines[:-1]] + lines[-1:]


def _targets(recipe: Recipe) -> str:
    targets = _value(recipe.settings.get("lora_targets"))
    if targets is None:
        return "every linear layer"
    return ", ".join(targets) if isinstance(targets, list) else "some layers (lora_targets)"


def _settings(recipe: Recipe) -> Iterator[str]:
    """The lines of the Settings block."""
    yield f"base = {_literal(recipe.starts_from or recipe.architecture.path)}"
    yield from _list("data_paths", recipe.data.paths)
    yield from _list("image_folders", recipe.data.folders)
    left_out = set()
    if not recipe.parts("lora"):
        left_out |= _LORA
    if not recipe.quantized:
        left_out |= {"quant_type"}
    if not recipe.packed:
        left_out |= _PACKED
    if not recipe.objectives:
        left_out |= _PREFERENCE
    if recipe.llm == "all":
        left_out |= _OF_FROZEN_LLM
    left_out |= {f"freeze_{part}" for part in PARTS if part not in recipe.free_parts}
    if "visual_encoder" not in recipe.free_parts:
        left_out |= {"visual_encoder_last_layers"}
    left_out |= _ON_REQUEST - set(recipe.settings)
    broken = False
    for name, default in SETTINGS.items():
        if name in left_out:
            continue
        if name in _BREAK_BEFORE and not (name == "batch_size" and broken):
            yield ""
            broken = name == "pack_tokens"
        setting = recipe.settings.get(name, default)
        comment = setting.comment if isinstance(setting, Commented) else ""
        yield f"{name} = {_literal(setting_of(recipe, name))}" + (f"  # {comment}" if comment else "")


def _list(name: str, values: tuple[str, ...]) -> Iterator[str]:
    if len(values) == 1:
        yield f"{name} = [{_literal(values[0])}]"
        return
    yield f"{name} = ["
    yield from (f"    {_literal(value)}," for value in values)
    yield "]"


def _value(setting: Any) -> Any:
    return setting.value if isinstance(setting, Commented) else setting


def _literal(value: Any) -> str:
    """A value as a person writes it: regular expressions raw, small floats in powers of ten."""
    if isinstance(value, str) and "\\" in value:
        return f'r"{value}"'
    if isinstance(value, float) and 0 < value < 0.01:
        digits, _, exponent = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return literal(value)
