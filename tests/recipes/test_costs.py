"""The strategy of a launch line is the one that its arithmetic wants."""

from tests.conftest import ROOT
from xtuner_plugins.planning.memory import GIB
from xtuner_plugins.recipes import plan
from xtuner_plugins.recipes.costs import costs
from xtuner_plugins.recipes.recipe import setting_of
from xtuner_plugins.recipes.table import RECIPES

SPREAD = [recipe for recipe in RECIPES if recipe.llm == "frozen" and recipe.processes > 1]


def test_a_frozen_llm_is_not_gathered():
    """The launch line's strategy fits and receives least; the leaf's docstring says what each costs."""
    for recipe in SPREAD:
        check_strategy(recipe)


def check_strategy(recipe):
    found = {cost.deepspeed: cost for cost in costs(recipe)}
    room = 0.9 * plan.planned_gpu(recipe).memory * GIB
    least = min((cost for cost in found.values() if cost.memory <= room), key=lambda cost: cost.received)
    assert recipe.deepspeed == least.deepspeed
    llm = plan.model_of_base(recipe.architecture).shape.llm.parameters
    others = (recipe.processes - 1) / recipe.processes
    frozen = 2 * llm * 2 * setting_of(recipe, "accumulative_counts") * others  # forward and backward, bfloat16
    assert frozen < found["deepspeed_zero3"].received < 1.3 * frozen
    lines = [line for line in (ROOT / recipe.path).read_text().splitlines() if " GiB received" in line]
    assert len(lines) == 4 and [line.strip().endswith("the launch line's") for line in lines].count(True) == 1
    for line, cost in zip(lines, costs(recipe), strict=True):
        assert f"{cost.received / GIB:.2f} GiB received" in line and f"{cost.memory / GIB:.1f} GiB of memory" in line
