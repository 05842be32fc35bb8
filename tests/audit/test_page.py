"""The check's page: valid, whole, self-contained, and true to what training gets; and the tables that it shows."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.audit.check import PlainFiles, check_dataset
from xtuner_plugins.audit.findings import find
from xtuner_plugins.audit.page import as_json, pick, shares, shorten, what_if, write_page
from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset
from xtuner_plugins.datasets.plan.budget import DROPPED, SHRUNK, TRUNCATED


class Cards(HTMLParser):
    """The cards of a page as texts; every tag must be closed in its turn, and nothing may be loaded."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cards, self.images, self.scripts = [], [], {}, page.count("<script")
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        assert own.get("src", own.get("href", "#")).startswith(("data:image/jpeg;base64,", "#"))
        if tag == "img":
            self.images[own["alt"]] = Image.open(io.BytesIO(base64.b64decode(own["src"].partition(",")[2])))
        self.cards += [""] if own.get("class") == "card" else []
        self.open += [(tag, own.get("class"))] if tag not in ("meta", "input", "img", "br") else []

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("div", "card") in self.open:
            self.cards[-1] += data


@pytest.fixture
def write(tmp_path, data_base, write_data, make_image):
    """write({file name: records}, kind, settings) -> (the page, its cards, numbers)."""
    for name, *size in (("a.png", 100, 90), ("b.png", 360, 120), ("图 片/c.png", 120, 360)):
        folder = make_image(name, *size)

    def call(files, kind=MultimodalDataset, **settings):
        paths = [write_data(records, name) for name, records in files.items()]
        dataset = kind(str(data_base), paths, folder, **settings) if kind is not PlainFiles else kind(paths, folder)
        reports = check_dataset(dataset, num_workers=0)
        findings = find(dataset, reports)
        numbers = json.loads(json.dumps(as_json(dataset, reports, findings)))
        count = write_page(tmp_path / "page.html", dataset, reports, findings)
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        parsed = Cards(page)
        assert len(parsed.cards) == count
        return page, parsed, numbers

    return call


def test_the_page_is_whole_and_its_numbers_are_those_of_the_data(write, six_records, tmp_path):
    for kind, has_tokens in ((MultimodalDataset, True), (PlainFiles, False)):
        page, parsed, numbers = write({"data.jsonl": six_records}, kind)
        assert "@import" not in page and "url(" not in page and "fetch(" not in page
        page = html.unescape(page)
        assert "2 of 6 records can't be trained on" in page and "6 条记录中有 2 条不能用于训练" in page
        assert "correct the name or the image folder" in page and len(parsed.cards) == 6
        bad = ["no such image" in card or "no_conversations" in card for card in parsed.cards]
        assert bad == [False, True, False, False, True, False]
        assert ("Yes.<|im_end|>" in parsed.cards[0], "16 image tokens" in parsed.cards[0]) == (has_tokens, has_tokens)
        assert '<span class="learn">Yes.' in page and '<span class="learn">A?' not in page
        assert ">1 image_missing</b>" in page and ">1 no_conversations</b>" in page
        tiles = [f"tile {number}" for number in range(1, 6)] * has_tokens
        assert sorted(parsed.images) == ["a.png 100×90", "b.png 360×120", *tiles]
        assert ("data · 110 tokens词元, 5 learned参与学习 · 5 tiles图块\n" in parsed.cards[5]) == has_tokens
    path, counts = f"{tmp_path}/data.jsonl", {"image_missing": 1, "no_conversations": 1}
    small = {"kind": "upscaled", "count": 2, "total": 2, "where": {"data": 2}}
    small["examples"] = [[f"{path}:1"], [f"{path}:3"]]
    share = {"name": "data", "repeat": 1, "records": 6, "unusable": 2, "images": 4, "samples": 4, "samples_share": 1}
    file = {"file": path, "num_records": 6, "unusable": counts, "warnings": {}}
    assert numbers == {"files": [file], "findings": [small], "shares": [share], "what_if": []}


def test_texts_never_become_markup_and_only_images_of_the_folder_are_shown(write, qa, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    files = {"<i>.jsonl": [qa(f"What is {evil}?", evil), {"text": evil, evil: 1}, qa(image=f"{evil}.png")]}
    page, parsed, _ = write(files)
    assert parsed.scripts == 2 and "<img" not in page and "<i>" not in page and evil in parsed.cards[0]
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    names = ("../secret.png", str(tmp_path / "secret.png"), "link.png")  # outside of their folder: not shown
    _, parsed, _ = write({"a.jsonl": [qa(image=name) for name in names]})
    assert parsed.images == {} and all("image_outside" in card for card in parsed.cards)


def test_answers_of_a_pair_frames_of_a_video_and_boxes(write, qa, tmp_path, make_image):
    pair = {"image": "a.png", "question": "What is it?", "chosen": "A <cat>.", "rejected": "A dog."}
    page, parsed, _ = write({"pairs.jsonl": [pair]}, PreferenceDataset)
    words = [r"What is it\?", "chosen", r"A <cat>\.<\|im_end\|>", "rejected", r"A dog\.<\|im_end\|>"]
    assert re.search(".*".join(words), parsed.cards[0], re.DOTALL)
    assert page.count('<span class="learn">A') == 2
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "No.", "loss": 0}, *qa("Sure?")["conversations"]]
    page, _, _ = write({"a.jsonl": [{"conversations": turns}]}, PlainFiles)
    assert '<span class="learn">A cat.' in page and '<span class="learn">No.' not in page
    for number in range(17):
        make_image(f"clip/{number}.png", 60 + number, 40)
    for kind, num_tiles in ((MultimodalDataset, 8), (PlainFiles, 0)):
        _, parsed, _ = write({"a.jsonl": [qa("<video>\nWhat?", video="clip")]}, kind)
        sizes = {"clip 61×40": (61, 40)} | {f"tile {number}": (96, 96) for number in range(1, num_tiles + 1)}
        assert {name: image.size for name, image in parsed.images.items()} == sizes  # the first of the eight taken
    Image.new("RGB", (800, 400)).save(tmp_path / "images/black.png")  # it is shown smaller
    for box, pixels in (
        ([250, 200, 750, 800], {}),
        ([750, 800, 250, 200], {}),  # inverted ones are complained of, and shown
        ([200, 80, 600, 320], {"boxes": "pixel", "width": 800, "height": 400}),
    ):
        _, parsed, _ = write({"a.jsonl": [qa("Where?", f"<box>{box}</box>", image="black.png", **pixels)]}, PlainFiles)
        green = np.asarray(parsed.images["black.png 800×400"])[..., 1] > 100
        edges = [np.flatnonzero(green.any(axis))[[0, -1]].tolist() for axis in (0, 1)]
        assert green.shape == (180, 360) and edges == [[90, 270], [36, 144]]


def test_a_card_has_so_many_images_and_reasons_come_by_kind_and_number(write, write_data, qa):
    records = [qa("<image>" * 7, image=["b.png"] * 6 + ["图 片/c.png"]), qa(image="none.png"), {"a": 1}, {"a": 2}]
    rejected = write_data([{"file": write_data([], "a.jsonl"), "row": 4}], "rejected.jsonl")
    files = {"a.jsonl": [*records, qa("?"), *[qa(answer="")] * 3]}
    page, parsed, _ = write(files, max_tiles=40, reject_list=rejected)
    assert list(parsed.images) == ["b.png 360×120", *(f"tile {number}" for number in range(1, 27))]
    assert re.findall(r">(\d+ \w+)</b>", page) == ["2 no_conversations", "1 image_missing", "3 empty_answer"]


def test_every_file_has_cards_and_records_with_a_reason_come_first(write, qa, tmp_path):
    files = {"large.jsonl": [qa(f"{number}?", f"Answer {number}.") for number in range(300)]}
    files["小.json"] = [qa("这是什么?", "一只猫。", image="图 片/c.png"), {"a": 1}, qa("0?", "Answer 0.")]
    _, parsed, _ = write(files, PlainFiles)
    assert len(parsed.cards) == 101 and sum("一只猫。" in card for card in parsed.cards) == 1
    dataset = PlainFiles([str(tmp_path / name) for name in files], str(tmp_path / "images"))
    reports = check_dataset(dataset, num_workers=0)
    tagged = {place[1:]: kinds for place, kinds in pick(dataset, reports, find(dataset, reports)).items() if kinds}
    reasons = {(0, 0): "equal_records", (1, 0): "upscaled", (1, 1): "no_conversations", (1, 2): "equal_records"}
    assert tagged == {place: [reason] for place, reason in reasons.items()}
    (tmp_path / "images/图 片/c.png").unlink()  # it has changed since it was checked
    for held_out in ([], [(dataset, reports)]):
        write_page(tmp_path / "page.html", dataset, reports, find(dataset, reports, held_out), held_out)
        cards = Cards((tmp_path / "page.html").read_text(encoding="utf-8")).cards
        assert any("validation" in card for card in cards) == bool(held_out)
        assert any("no such image" in card and "这是什么?" in card for card in cards)
    runs = [("plain", "a" * 5999), ("learn", "bc"), ("span", "d")]
    assert shorten(runs) == [runs[0], ("learn", "b …")] and shorten([("plain", "a" * 6000)]) == [("plain", "a" * 6000)]


def test_figures_are_those_of_runs_with_these_limits(data_base, write_data, make_image, qa):
    photos = [qa("What is there?", "A cat.", image="b.png") for _ in range(3)] + [qa(image="none.png")]
    texts = [qa("这是什么？", "一只猫。"), qa("Count.", "one two three " * 60), qa("What?", "A cat.")]
    files = [write_data(photos, "photos.jsonl"), write_data(texts, "texts.jsonl")], make_image("b.png", 360, 120)

    def opened(**settings):
        return MultimodalDataset(str(data_base), *files, repeat_times=[2.5, 1], on_bad_sample="skip", **settings)

    def sums(kept=slice(None), **settings):
        tokens, tiles, fates = opened(**settings).layout(num_workers=0)
        counts = np.bincount(fates[kept], minlength=DROPPED + 1)
        found = {"samples": counts[:DROPPED].sum(), "tokens": tokens[kept].sum(), "tiles": tiles[kept].sum()}
        return found | {"shrunk": counts[SHRUNK], "cut": counts[TRUNCATED], "too_long": counts[DROPPED]}

    dataset = opened(max_length=100)
    reports, first = check_dataset(dataset, num_workers=0), dataset.ends[0]
    rows = shares(dataset, reports)
    for row, kept in zip(rows, (slice(first), slice(first, None)), strict=True):
        expected = sums(kept, max_length=100)
        assert all(row[name] == expected[name] for name in ("samples", "tokens", "tiles"))
        assert 0 < row["supervised"] < row["tokens"]
    assert rows[0]["repeat"] == 2.5 and sum(row["tokens_share"] for row in rows) == pytest.approx(1)
    rows = what_if(dataset, reports)
    assert [(row["max_length"], row["max_tiles"]) for row in rows if row["is_current"]] == [(100, 6)]
    assert {row["max_length"] for row in rows} == {50, 100, 200, 400}
    for row in rows:
        assert row.items() >= sums(max_length=row["max_length"], max_tiles=row["max_tiles"]).items()
    dataset = opened(dataset_settings=[{"max_tiles": 2}, None])  # a lower limit of its own
    tiles = {row["max_tiles"]: row["tiles"] for row in what_if(dataset, check_dataset(dataset, num_workers=0))}
    assert tiles[12] == tiles[6] == tiles[4] == 3 * tiles[1]
