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

from xtuner_plugins.audit.cards import embed
from xtuner_plugins.audit.check import PlainFiles, check_dataset
from xtuner_plugins.audit.findings import find
from xtuner_plugins.audit.page import as_json, pick, write_page
from xtuner_plugins.audit.tables import shares, what_if
from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset
from xtuner_plugins.datasets.plan.lengths import DROPPED, SHRUNK, TRUNCATED

VOID = {"meta", "input", "img", "br"}


class Cards(HTMLParser):
    """The cards of a page as texts; every tag must be closed in its turn, and nothing may be loaded."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cards, self.images, self.scripts = [], [], [], 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        sources = [value for name, value in attributes if name in ("src", "href")]
        assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in sources)
        self.images += [dict(attributes)["alt"]] if tag == "img" else []
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("class", "")))
            self.cards += [""] * (self.open[-1] == ("div", "card"))

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


@pytest.mark.parametrize("kind", [MultimodalDataset, PlainFiles])
def test_the_page_is_whole(write, six_records, kind):
    page, parsed, numbers = write({"data.jsonl": six_records}, kind)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page
    page = html.unescape(page)
    assert "2 of 6 records can't be trained on" in page and "6 条记录中有 2 条不能用于训练" in page
    assert "correct the name or the image folder" in page and len(parsed.cards) == 6
    bad = ["no such image" in card or "no_conversations" in card for card in parsed.cards]
    assert bad == [False, True, False, False, True, False]
    has_tokens = kind is MultimodalDataset
    assert ("Yes.<|im_end|>" in parsed.cards[0], "16 image tokens" in parsed.cards[0]) == (has_tokens, has_tokens)
    tiles = parsed.images.count("tile 1"), len([name for name in parsed.images if name.startswith("tile")])
    assert tiles == ((3, 10) if has_tokens else (0, 0))
    assert [name for name in parsed.images if name.startswith("b.png")] == ["b.png 360×120"] * 2
    assert numbers["files"][0]["unusable"] == {"image_missing": 1, "no_conversations": 1}
    assert len(numbers["what_if"]) == (16 if has_tokens else 0)


def test_texts_never_become_markup(write, qa):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    files = {"<i>.jsonl": [qa(f"What is {evil}?", evil), {"text": evil, evil: 1}, qa(image=f"{evil}.png")]}
    for kind in (MultimodalDataset, PlainFiles):
        page, parsed, _ = write(files, kind)
        assert parsed.scripts == 2 and "<img" not in page and "<i>" not in page and evil in parsed.cards[0]


def test_images_outside_of_their_folder_are_not_shown(write, qa, tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    names = ("../secret.png", str(tmp_path / "secret.png"), "link.png")
    for kind in (MultimodalDataset, PlainFiles):
        _, parsed, _ = write({"a.jsonl": [qa(image=name) for name in names]}, kind)
        assert parsed.images == [] and all("image_outside" in card for card in parsed.cards)


def test_answers_of_a_pair_frames_of_a_video_and_boxes(write, qa, tmp_path):
    pair = {"image": "a.png", "question": "What is it?", "chosen": "A <cat>.", "rejected": "A dog."}
    page, parsed, _ = write({"pairs.jsonl": [pair]}, PreferenceDataset)
    words = [r"What is it\?", "chosen", r"A <cat>\.<\|im_end\|>", "rejected", r"A dog\.<\|im_end\|>"]
    assert re.search(".*".join(words), parsed.cards[0], re.DOTALL)
    assert page.count('<span class="learn">A') == 2
    (tmp_path / "images/clip").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (80 * number,) * 3).save(tmp_path / f"images/clip/{number}.png")
    _, parsed, _ = write({"a.jsonl": [qa("<video>\nWhat?", video="clip")]})
    assert parsed.images == ["clip 60×40", "tile 1", "tile 2", "tile 3"]
    Image.new("RGB", (200, 100)).save(tmp_path / "images/black.png")
    for box in ([[250, 200, 750, 800]], [[50, 20, 150, 80]]):
        pixels = {"boxes": "pixel", "width": 200, "height": 100} if box[0][0] == 50 else {}
        page, _, _ = write({"a.jsonl": [qa("Where?", f"<box>{box}</box>", image="black.png", **pixels)]}, PlainFiles)
        data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
        green = np.asarray(Image.open(io.BytesIO(data)))[..., 1] > 100
        rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
        assert abs(np.array([columns[0], columns[-1], rows[0], rows[-1]]) - [50, 150, 20, 80]).max() <= 3
    page, _, _ = write({"a.jsonl": [qa("Where?", "<box>[[800, 2, 100, 8]]</box>", image="black.png")]}, PlainFiles)
    assert "within 0 to 1000" in page  # shown without its box, which can't be drawn
    large = base64.b64decode(embed(Image.new("RGB", (1000, 500))).partition(",")[2])
    assert Image.open(io.BytesIO(large)).size == (360, 180)


def test_every_file_has_cards_and_records_with_a_reason_come_first(write, qa, write_data, tmp_path):
    files = {
        "large.jsonl": [qa(f"{number}?", f"Answer {number}.") for number in range(300)],
        "小.json": [qa("这是什么?", "一只猫。", image="图 片/c.png"), {"a": 1}, qa("0?", "Answer 0.")],
    }
    _, parsed, _ = write(files, PlainFiles)
    assert 100 <= len(parsed.cards) <= 103 and sum("一只猫。" in card for card in parsed.cards) == 1
    dataset = PlainFiles([write_data(records, name) for name, records in files.items()], str(tmp_path / "images"))
    reports = check_dataset(dataset, num_workers=0)
    tags = pick(dataset, reports, find(dataset, reports))
    tagged = {place: reasons for place, reasons in tags.items() if reasons}
    reasons = {
        (0, 0, 0): "equal_records",
        (0, 1, 0): "upscaled",
        (0, 1, 1): "no_conversations",
        (0, 1, 2): "equal_records",
    }
    assert tagged == {place: [reason] for place, reason in reasons.items()}


def test_a_record_that_has_changed_since_says_so(write, write_data, qa, tmp_path):
    dataset = PlainFiles(write_data([qa("Gone?", image="a.png")]), str(tmp_path / "images"))
    reports = check_dataset(dataset, num_workers=0)
    (tmp_path / "images/a.png").unlink()
    write_page(tmp_path / "page.html", dataset, reports, [])
    (card,) = Cards((tmp_path / "page.html").read_text()).cards
    assert "no such image" in card and "Gone?" in card


@pytest.fixture
def mixture(data_base, write_data, make_image, qa):
    """mixture(**settings) -> a dataset over two files, with its reports."""
    folder = make_image("b.png", 360, 120)
    photos = [qa("What is there?", "A cat.", image="b.png") for _ in range(3)] + [qa(image="none.png")]
    texts = [qa("这是什么？", "一只猫。"), qa("Count.", "one two three " * 60), qa("What?", "A cat.")]
    paths = [write_data(photos, "photos.jsonl"), write_data(texts, "texts.jsonl")]

    def open_with(**settings):
        dataset = MultimodalDataset(str(data_base), paths, folder, on_bad_sample="skip", **settings)
        return dataset, check_dataset(dataset, num_workers=0)

    return open_with


def test_shares_are_those_of_the_samples_that_train(mixture):
    dataset, reports = mixture(repeat_times=[2.5, 1], max_length=100)
    rows = shares(dataset, reports)
    tokens, tiles, fates = dataset.sizes(num_workers=0)
    first = np.arange(len(dataset)) < dataset.ends[0]
    for row, kept in zip(rows, (first, ~first), strict=True):
        kept = kept & (fates < DROPPED)
        assert (row["samples"], row["tokens"], row["tiles"]) == (kept.sum(), tokens[kept].sum(), tiles[kept].sum())
        assert 0 < row["supervised"] < row["tokens"]
    assert rows[0]["repeat"] == 2.5 and sum(row["tokens_share"] for row in rows) == pytest.approx(1)


def test_the_table_says_what_a_run_with_these_limits_would_find(mixture, tmp_path):
    dataset, reports = mixture(max_length=100, repeat_times=[2, 1])
    kept = set(tmp_path.glob("cache/**/*.npy"))
    rows = what_if(dataset, reports)
    assert kept == set(tmp_path.glob("cache/**/*.npy"))  # nothing is trained with these limits
    assert [row["is_current"] for row in rows].count(True) == 1
    for row in rows:
        other, _ = mixture(max_length=row["max_length"], max_tiles=row["max_tiles"], repeat_times=[2, 1])
        tokens, tiles, fates = other.sizes(num_workers=0)
        names = {"shrunk": SHRUNK, "cut": TRUNCATED, "too_long": DROPPED}
        expected = {name: (fates == fate).sum() for name, fate in names.items()}
        expected |= {"samples": (fates < DROPPED).sum(), "tokens": tokens.sum(), "tiles": tiles.sum()}
        assert {key: row[key] for key in expected} == expected
    dataset, reports = mixture(dataset_settings=[{"max_tiles": 2}, None])  # a lower limit of its own
    tiles = {row["max_tiles"]: row["tiles"] for row in what_if(dataset, reports)}
    assert tiles[12] == tiles[6] == tiles[4] == 3 * 3 and tiles[1] == 3
