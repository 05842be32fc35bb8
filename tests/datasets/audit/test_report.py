"""The checker's page: whole, self-contained, and true to what training gets."""

import base64
import io
import re

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.report import write_report


@pytest.fixture
def write_page(tmp_path, data_base, write_data, make_image):
    """write_page({file name: records}, settings of the dataset, options of the page) -> (page, complaints)."""
    make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    folder = make_image("图 片/c.png", 120, 360)
    Image.new("RGB", (360, 120)).save(tmp_path / "images/black.png")
    (tmp_path / "images/clip").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (80 * number,) * 3).save(tmp_path / f"images/clip/{number}.png")

    def write(files, settings=None, kind=MultimodalDataset, **options):
        paths = [write_data(records, name) for name, records in files.items()]
        dataset = kind(str(data_base), paths, folder, **(settings or {}))
        complaints = []
        reports = check_dataset(dataset, num_workers=0, complain=complaints.append)
        write_report(tmp_path / "r.html", dataset, reports, complaints, **options)
        return (tmp_path / "r.html").read_text(encoding="utf-8"), complaints

    return write


def cards(page):
    return page.split('<div class="card">')[1:]


def test_the_page_is_whole(write_page, six_records):
    page, complaints = write_page({"data.jsonl": six_records}, num_cards=6, max_tokens=600)
    assert not re.search(r"(src|href)=['\"]?(?!data:)\w+:", page)  # nothing is loaded from elsewhere
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert len(cards(page)) == 4 and page.count("thumbnail</figcaption>") == 2  # b.png, drawn twice
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page
    assert '<span class="learn">Yes.&lt;|im_end|&gt;</span>' in page and "64 image tokens" in page
    assert "[[100, 100, 500, 500]]" in page and 'class="pack"' in page
    assert len(complaints) == 2 and all(escape(text) in page for text in complaints)
    assert "2 of 6 records can't be trained on" in page and "1 image_missing" in page
    assert "prefers-color-scheme:dark" in page and "max-width:760px" in page


def test_every_file_is_shown(write_page, qa):
    """A small file beside a large one has its card, its sums and its histograms; names in any script."""
    files = {
        "large.jsonl": [qa(f"{number}?") for number in range(50)],
        "小.json": [qa("这是什么?", "一只猫。", image="图 片/c.png"), {"a": 1}],
        "<i>.jsonl": [qa()],
    }
    page, _ = write_page(files, num_cards=4)
    found = cards(page)
    assert len(found) == 4 and sum("一只猫。" in card for card in found) == 1
    assert sum("&lt;i&gt;.jsonl:1" in card for card in found) == 1 and "<i>" not in page
    assert page.count("<details") == 4 and page.count("<details open>") == 1  # all files together are open
    assert [page.count(f"<b>{name}</b>") for name in ("large", "小", "&lt;i&gt;", "all files")] == [1] * 4


def test_grids_are_those_that_the_sample_has(write_page, qa):
    """Several images share the tiles, and a long sample has fewer: the grid drawn is the one that is trained on."""
    alone, pair = qa(image="b.png"), qa("<image><image>", image=["b.png", "图 片/c.png"])
    page, _ = write_page({"a.jsonl": [alone]})
    assert "360x120, 3x1 tiles" in page
    page, _ = write_page({"a.jsonl": [pair]}, dict(max_tiles=4))
    assert "360x120, 2x1 tiles" in page and "120x360, 1x2 tiles" in page
    page, _ = write_page({"a.jsonl": [pair]}, dict(max_tiles=4, max_length=80))
    assert "360x120, 1x1 tile<" in page and "120x360, 1x1 tile<" in page and "thumbnail<" not in page


def test_frames_of_a_video(write_page, qa):
    page, _ = write_page({"a.jsonl": [qa("<video>\nAnd <image>?", video="clip", image="b.png")]}, num_cards=2)
    assert [page.count(f"Frame-{number}</figcaption>") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert page.count("360x120, 3x1 tiles</figcaption>") == 1


def test_boxes_are_drawn_where_they_are(write_page, qa):
    record = qa("Where?", "<box>[[100, 100, 500, 900]]</box>", image="black.png")
    page, _ = write_page({"a.jsonl": [record]}, dict(max_tiles=1))
    data = base64.b64decode(re.search(r"base64,([^\"]+)\"", page)[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    green = (pixels[..., 1] > 150) & (pixels[..., 0] < 90) & (pixels[..., 2] < 130)
    height, width = green.shape
    rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    edges = [columns[0] / width, rows[0] / height, columns[-1] / width, rows[-1] / height]
    np.testing.assert_allclose(edges, [0.1, 0.1, 0.5, 0.9], atol=0.03)  # a line is 3 px wide


def test_both_answers_of_a_pair_stand_side_by_side(write_page):
    pairs = [
        {"image": "a.png", "question": "What is it?", "chosen": "A <cat>.", "rejected": "A dog."},
        {"image": "a.png", "question": "What is it?", "chosen": "Same.", "rejected": "Same."},
    ]
    page, complaints = write_page({"pairs.jsonl": pairs}, kind=PreferenceDataset, num_cards=2)
    assert len(complaints) == 1 and "pairs.jsonl:2: both answers are 'Same.'" in complaints[0]
    (card,) = cards(page)
    prompt, chosen, rejected = re.split(r'<div class="(?:chosen|rejected)">', card)
    assert "What is it?" in prompt and "image tokens" in prompt and "learn" not in prompt.split('class="text"')[1]
    assert '<span class="learn">A &lt;cat&gt;.&lt;|im_end|&gt;</span>' in chosen and "dog" not in chosen
    assert '<span class="learn">A dog.&lt;|im_end|&gt;</span>' in rejected and "cat" not in rejected
    assert "prefer the chosen answer" in page


def test_no_cards_and_nothing_usable(write_page, qa):
    page, _ = write_page({"a.jsonl": [{"a": 1}] * 300})
    assert cards(page) == [] and 'class="pack"' not in page and "and 100 more" in page
    page, _ = write_page({"a.jsonl": [qa()]}, num_cards=0)
    assert cards(page) == [] and "Every record can be trained on" in page
