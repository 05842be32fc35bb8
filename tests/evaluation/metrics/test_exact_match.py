import pytest

from xtuner_plugins.evaluation.metrics.exact_match import ExactMatch


@pytest.mark.parametrize(
    "answer, right",
    [("Yes", True), (" yes\n", True), ("yes.", False), ("the yes", False), ("", False), ("ÉTÉ", True), ("ja", True)],
)
def test_case_and_space_are_all_that_is_ignored(answer, right, make_item):
    assert ExactMatch().score(answer, make_item("yes", "été", "Ja")) is right
