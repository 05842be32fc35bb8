from dataclasses import replace

from rich.console import Console

from xtuner_plugins.planning import report
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.memory import GIB, Plan, plan_memory
from xtuner_plugins.planning.strategies import plain
from xtuner_plugins.planning.work import work_of


def text_of(table):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_verdicts():
    plan = Plan("loss", {"a": 10}, {"loss": 10}, 0)
    assert [report.verdict(plan, available) for available in (9, 10, 11, 12)] == [
        "does not fit",
        "tight",
        "tight",
        "fits",
    ]


def test_every_part_and_the_sum_are_shown():
    plan = Plan("loss", {"optimizer": 3 * GIB, "logits": 2 * GIB, "buffers": 0}, {"loss": 5 * GIB}, 7 * GIB)
    text = text_of(report.memory_table(plan, plain(8), 6 * GIB))
    for words in (
        "DDP on 8 GPUs",
        "optimizer",
        "3.0",
        "logits",
        "sum, when the loss is computed",
        "5.0",
        "free of 6.0",
    ):
        assert words in text, words
    assert "1.0" in text and "7.0" in text and "fits" in text and "buffers" not in text


def test_every_moment_has_words(warm_up):
    assert set(plan_memory(warm_up, plain(1)).moments) <= set(report.MOMENTS)


def test_strategies_and_work(warm_up):
    plan = plan_memory(warm_up, plain(1))
    assert "one process" in text_of(report.strategies_table([(plain(1), plan)], 80 * GIB))
    text = text_of(report.work_table(warm_up, work_of(warm_up, Batch(10, 1, 4)), 1024))
    assert "per step of 1,024 samples" in text and "LLM, forward" in text and "reference" not in text
    pairs = replace(warm_up, pairs=True, reference=True)
    assert "reference, forward" in text_of(report.work_table(pairs, work_of(pairs, Batch(10, 1, 4)), 1024))


def test_durations():
    assert report.duration(90) == "2 minutes" and report.duration(2 * 3600) == "2.0 hours"
