"""The table of README on memory: what released models take by kind of training, as `tools/plan.py` plans it."""

from __future__ import annotations

from ..planning.memory import GIB
from ..planning.strategies import plain
from .plan import model_of_base, plan_run, settings_of_recipe, strategy_of
from .recipe import Recipe
from .table import RECIPES

# What stands between the marks is written by `write.py`, the rest is a person's.
BEGIN, END = "<!-- hardware: begin -->\n", "<!-- hardware: end -->\n"
FOLDER = "internvl_v3_5"
ON_ONE_GPU = ("qlora_finetune", "lora_finetune")  # ends of the leaves' names
ON_ITS_GPUS = "finetune"


def planned(recipe: Recipe, on_one_gpu: bool) -> int:
    """Bytes of each GPU with one sample per micro-batch, everything else as the recipe has it."""
    settings = settings_of_recipe(recipe)
    settings["train_dataloader"]["batch_size"] = 1
    strategy = plain(1) if on_one_gpu else strategy_of(recipe.deepspeed, recipe.processes)
    return plan_run(settings, model_of_base(recipe.architecture), strategy).memory.total


def render_hardware(is_chinese: bool = False) -> str:
    """The table, one row per model in the order of the recipes."""
    leaves = {recipe.stem: recipe for recipe in RECIPES if recipe.folder == FOLDER}
    heads = ("模型", "QLoRA", "LoRA", "训练整个 LLM") if is_chinese else ("model", "QLoRA", "LoRA", "the whole LLM")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    stems = [leaf.removesuffix(f"_{ON_ONE_GPU[0]}") for leaf in leaves if leaf.endswith(ON_ONE_GPU[0])]
    for stem in stems:
        whole = leaves[f"{stem}_{ON_ITS_GPUS}"]
        small = [f"1 x {planned(leaves[f'{stem}_{end}'], True) / GIB:.0f} GiB" for end in ON_ONE_GPU]
        large = f"{whole.processes} x {planned(whole, False) / GIB:.0f} GiB"
        lines.append(f"| {whole.base} | {' | '.join([*small, large])} |")
    return "\n".join(lines) + "\n"
