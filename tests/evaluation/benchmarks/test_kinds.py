import pytest

from xtuner_plugins.evaluation.benchmarks.kinds import KINDS, fill
from xtuner_plugins.evaluation.metrics import METRICS


def test_every_metric_is_known():
    assert {kind.metric for kind in KINDS.values()} - {None} <= set(METRICS)


@pytest.mark.parametrize(
    "prompt, question, text",
    [
        ("{hint}\n{question}\n{choices}\nAnswer.", "Q?", "Q?\nAnswer."),
        ("{question} Short.", "Q? Short.", "Q? Short."),
        ("{question} Short.", "{choices} Q?", "{choices} Q? Short."),
        ("Find <ref>{question}</ref>", "a</ref>", "Find <ref>a</ref></ref>"),
    ],
)
def test_fields_are_filled_in(prompt, question, text):
    assert fill(prompt, {"question": question, "hint": "", "choices": ""}) == text
