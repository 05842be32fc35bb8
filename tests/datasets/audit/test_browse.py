"""All records as cards: filters, order, search, a few at a time."""

import pytest

from xtuner_plugins.datasets.audit import browse
from xtuner_plugins.datasets.audit.browse import Browser, Question
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.findings import find
from xtuner_plugins.datasets.audit.looking import PlainFiles


@pytest.fixture
def browser(write_data, make_image, qa):
    """60 records of two files with two copies, two broken ones, one in Chinese; a validation record."""
    folder = make_image("a.png", 100, 45)
    make_image("b.png", 60, 180)
    records = [qa(f"What is {number}?", f"It is {number}.", image="a.png") for number in range(50)]
    records += [records[7], {"a": "<b>Broken</b>"}]
    others = [
        qa("这是什么？", "一只猫。", image="b.png"),
        *[qa(f"{number}?") for number in range(6)],
        qa(image="none.png"),
    ]
    files = [write_data(records, "many.jsonl"), write_data(others, "few.jsonl")]
    everything = []
    for paths in (files, [write_data([qa("Held out?", image="b.png")], "val.jsonl")]):
        dataset = PlainFiles(paths, [folder] * len(paths))
        everything.append((dataset, check_dataset(dataset, num_workers=0, complain=lambda text: None)))
    return Browser(everything, find(*everything[0], everything[1:]))


def ask(browser, limit=100, **asked):
    """Names of the cards, from all answers."""
    found, after = [], 0
    while after is not None:
        answer = browser.ask(Question(**asked), after, limit)
        found += [card["at"].rpartition("/")[2] for card in answer["cards"]]
        after = answer["next"]
    return found


def test_every_record_has_a_card(browser):
    assert len(browser) == 61 and len(ask(browser)) == 61
    first = browser.ask(Question(), 0, 24)
    assert (first["total"], first["next"], len(first["cards"])) == (61, 24, 24)
    assert first["cards"][0]["images"][0]["src"].startswith("data:image/jpeg;base64,")
    assert ask(browser, limit=7) == ask(browser) and ask(browser)[-1] == "val.jsonl:1"
    last = browser.ask(Question(), 60)["cards"][0]
    assert last["held_out"] and last["reasons"] == ["leaked_images"]


def test_choices_and_filters(browser):
    assert browser.choices["dataset"] == ["few", "many", "val"] and browser.choices["language"] == ["Chinese", "Latin"]
    assert {"equal_records", "image_missing", "no_conversations", "leaked_images", "-"} <= set(
        browser.choices["reason"]
    )
    assert len(ask(browser, dataset="few")) == 8 and ask(browser, dataset="none") == []
    assert ask(browser, language="Chinese") == ["few.jsonl:1"]
    assert ask(browser, reason="image_missing") == ["few.jsonl:8"]
    assert ask(browser, reason="equal_records") == ["many.jsonl:8", "many.jsonl:51"]
    with_reason = {
        name for reason in browser.choices["reason"] if reason != "-" for name in ask(browser, reason=reason)
    }
    assert set(ask(browser, reason="-")) == set(ask(browser)) - with_reason
    assert ask(browser, limits=((None, None), (4, None), (None, None))) == ["few.jsonl:1", "val.jsonl:1"]
    assert len(ask(browser, limits=((None, None), (0, 0), (2, 2)))) == 6


def test_orders(browser):
    assert ask(browser, sort="-tiles")[:2] == ["few.jsonl:1", "val.jsonl:1"]
    assert ask(browser, sort="dataset")[0] == "few.jsonl:1" and ask(browser, sort="dataset")[-1] == "val.jsonl:1"
    assert ask(browser, sort="reason")[0] in ("many.jsonl:8", "many.jsonl:51")
    assert sorted(ask(browser, sort="reason")) == sorted(ask(browser, sort="language")) == sorted(ask(browser))
    assert ask(browser, sort="language")[2] == "few.jsonl:1"  # after the two that can't be used


def test_search_goes_on_where_its_time_ended(browser, monkeypatch):
    for words, names in [
        ("IT IS 42.", ["many.jsonl:43"]),
        ("一只猫", ["few.jsonl:1"]),
        ("b.png", ["few.jsonl:1", "val.jsonl:1"]),
        ("<b>broken", ["many.jsonl:52"]),
        ("no such image", ["few.jsonl:8"]),
        ("nowhere", []),
    ]:
        assert ask(browser, text=words) == names
    monkeypatch.setattr(browse, "SEARCH_SECONDS", -1)  # no time: an answer without cards still goes on
    answer = browser.ask(Question(text="it is 42."), 0)
    assert answer["cards"] == [] and answer["next"] == 1
    assert ask(browser, text="it is 42.") == ["many.jsonl:43"]


def test_few_orders_are_kept(browser):
    for number in range(20):
        browser.ask(Question(limits=((None, number), (None, None), (None, None))))
    assert len(browser._orders) == browse.MOST_KEPT
