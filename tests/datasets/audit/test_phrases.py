import pytest

from xtuner_plugins.datasets.audit import phrases
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.audit.phrases import frequent_phrases


@pytest.fixture
def found(write_data, qa):
    """found(answers) -> ([(phrase, count, record)], number of answers)."""

    def call(answers):
        dataset = PlainFiles([write_data([qa(f"{number}?", answer) for number, answer in enumerate(answers)])], [None])
        named, total = frequent_phrases(dataset, check_dataset(dataset, num_workers=0))
        return [(each.text, each.count, each.place[1]) for each in named], total

    return call


def test_a_phrase_of_many_answers(found):
    """Whole, not as a sequence for each of its words; an answer that repeats it counts once."""
    answers = [f"{number} {number}0 In this Photo we can clearly see a cat number {number}." for number in range(6)]
    answers[2] += " In this photo we can clearly see a cat number 2."
    answers += [f"Nothing like {number} it {number} {number * 7}." for number in range(6)]
    assert found(answers) == ([("in this photo we can clearly see a cat number", 6, 0)], 12)


def test_chinese(found):
    assert found([f"{'甲乙丙丁'[number]}图片中可以看到{number}" for number in range(4)])[0] == [
        ("图片中可以看到", 4, 0)
    ]


def test_few_and_short_answers(found):
    assert found(["Yes.", "No.", "a b c d e", "a b c d e"]) == ([], 4)


def test_random_answers_where_there_are_many(found, monkeypatch):
    monkeypatch.setattr(phrases, "MOST_ANSWERS", 20)
    named, total = found(["as far as I can tell"] * 50)
    assert total == 20 and named[0][:2] == ("as far as i can tell", 20)
