import pytest

from xtuner_plugins.evaluation.metrics.error_rates import Cer


@pytest.mark.parametrize(
    "answer, expected, score",
    [
        ("sitting", ["kitten"], 1 - 3 / 6),
        ("", ["abc"], 0.0),
        ("much too long", ["ab"], 0.0),
        (" abc\n", ["abc"], 1.0),
        ("招牌", ["招牌上"], 2 / 3),
        ("abd", ["zzz", "abc"], 2 / 3),  # the nearest
    ],
)
def test_characters(answer, expected, score, make_item):
    assert Cer().score(answer, make_item(*expected)) == pytest.approx(score)


def test_the_rate_of_a_set_weighs_by_length(make_item):
    items = [make_item("a"), make_item("abcdefghi")]
    assert Cer().figures(["xyz", "abcdefghi"], items) == {"cer": pytest.approx(30.0)}  # 3 edits, 10 characters
    assert not Cer.higher_is_better
