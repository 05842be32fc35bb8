"""All recipes: a row per leaf of `configs/`, which `write.py` makes of them."""

from __future__ import annotations

from .recipe import Recipe
from .rows_internvl import INTERNVL_RECIPES
from .rows_root import ROOT_RECIPES, TOY_RECIPES
from .rows_towers import CLIP_QWEN_RECIPES, LLAVA_RECIPES, SIGLIP_RECIPES

RECIPES: tuple[Recipe, ...] = (
    *ROOT_RECIPES,
    *TOY_RECIPES,
    *SIGLIP_RECIPES,
    *CLIP_QWEN_RECIPES,
    *LLAVA_RECIPES,
    *INTERNVL_RECIPES,
)
