"""Items without files, and what every metric must do."""

import itertools

import pytest

from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.inference.questions import Question


@pytest.fixture
def make_item():
    """Returns an item with these right answers and facts."""
    numbers = itertools.count(1)

    def make(*expected, place="", **facts):
        number = next(numbers)
        return Item(Question(f"q{number}", "?"), expected, facts, place or f"own.jsonl:{number}")

    return make
