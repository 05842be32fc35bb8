import pytest

from tests.conftest import ROOT
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


def row_of(page, kind):
    """The cells of a kind in the page's table."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    row, *_ = [line for line in text.splitlines() if line.startswith(f"| `{kind}` |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own"])
def test_the_page_shows_this_table(kind):
    _, _, metric, tiles, prompt = row_of("evaluation.md", kind)
    assert (metric, int(tiles)) == (f"`{KINDS[kind].metric}`", KINDS[kind].max_tiles)
    shown = [part.strip("`") for part in prompt.split(" ⏎ ")]
    assert shown == KINDS[kind].prompt.split("\n")


def test_the_page_names_every_metric():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"\n| `{name}` |" not in text] == []
