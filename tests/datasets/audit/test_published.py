"""The rows; what each makes of a record is in test_prepare.py."""

import re

import pytest

from xtuner_plugins.datasets.audit.published import RECIPES, minimind_v
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.settings import labels_of, leaves


def test_each_count_has_somebody_who_says_so():
    for recipe in RECIPES.values():
        assert bool(recipe.num_records) == bool(recipe.counted_by) and recipe.images


def test_names_are_plain_and_files_are_relative():
    for name, recipe in RECIPES.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name) and not recipe.file.startswith("/")
        assert bool(recipe.embedded) == recipe.file.endswith(".parquet")


@pytest.mark.parametrize(
    "raw", [{}, {"conversations": "not json"}, {"conversations": [{"role": "user"}]}, {"conversations": 3}]
)
def test_another_shape_is_no_record_of_minimind(raw):
    with pytest.raises((KeyError, ValueError, TypeError)):
        minimind_v(raw, 0)


def test_rules_are_told_where_records_are_chosen():
    told = {name for name, recipe in RECIPES.items() if recipe.rule}
    assert told == {"mmpr-v1.1", "mmpr-v1.2", "vlfeedback", "vlfeedback-parquet"}


def test_the_leaves_train_on_what_mmpr_becomes():
    """The command that their docstrings name writes pairs."""
    named = labels_of(leaves()["internvl_v3_qwen2_5_8b_mpo"])["data"]
    assert RECIPES["mmpr-v1.2"].parse is parse_pair and "prepare_data.py mmpr-v1.2 " in named
