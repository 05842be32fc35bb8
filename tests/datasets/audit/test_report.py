"""The checker's page: whole, self-contained or with one folder, and true to what training gets."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset
from xtuner_plugins.datasets.audit import cards as cards_module
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.findings import find
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.audit.report import as_json, log_bins, write_report
from xtuner_plugins.datasets.audit.tables import tabulate


@pytest.fixture
def write_page(tmp_path, data_base, write_data, make_image):
    """write_page({file name: records}, settings of the dataset, options of the page) -> (page, complaints)."""
    make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    folder = make_image("图 片/c.png", 120, 360)
    (tmp_path / "images/clip").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (80 * number,) * 3).save(tmp_path / f"images/clip/{number}.png")

    def write(files, settings=None, kind=MultimodalDataset, **options):
        paths = [write_data(records, name) for name, records in files.items()]
        if kind is PlainFiles:
            dataset = PlainFiles(paths, [folder] * len(paths))
        else:
            dataset = kind(
                str(data_base),
                paths,
                folder,
                cache_dir=str(tmp_path / "cache"),
                **{"on_bad_sample": "skip", **(settings or {})},
            )
        complaints = []
        reports = check_dataset(dataset, num_workers=0, complain=complaints.append)
        findings, tables = find(dataset, reports), tabulate(dataset, reports, num_workers=0)
        json.dumps(as_json(dataset, reports, findings, tables))  # the numbers are plain
        write_report(tmp_path / "r.html", dataset, reports, findings, tables, **options)
        return (tmp_path / "r.html").read_text(encoding="utf-8").replace("&#39;", "'"), complaints

    return write


def contents(page):
    """What the page's script gets."""
    return json.loads(re.search(r"const data = (\{.*\});\n", page)[1])


def cards(page):
    return contents(page)["cards"]


def text_of(card):
    return "".join(text for _, text in card["runs"])


def test_the_page_is_whole(write_page, six_records):
    page, complaints = write_page({"data.jsonl": six_records}, num_cards=6, max_tokens=600)
    markup = page.partition("const data")[0]
    assert not re.search(r"(src|href)=['\"]?(?!data:|#)\w", markup)  # nothing is loaded from elsewhere
    assert "@import" not in page and "url(" not in page and "fetch(" not in page
    found = cards(page)
    assert [card["is_bad"] for card in found] == [False, True, False, False, True, False]
    assert [card["reasons"] for card in found if card["is_bad"]] == [["image_missing"], ["no_conversations"]]
    assert [card["messages"] for card in found if card["is_bad"]] == [[text] for text in complaints]
    assert ["learn", "Yes.<|im_end|>"] in found[0]["runs"] and ["span", "16"] in found[0]["runs"]
    assert "[[100, 100, 500, 500]]" in text_of(found[2]) and 'class="pack"' in page
    assert contents(page)["images"][0].startswith("data:image/jpeg;base64,")
    assert "2 of 6 records can't be trained on" in page and "6 条记录中有 2 条不能用于训练" in page
    assert '1 <span class="en">image_missing</span><span class="zh" lang="zh">图像不存在</span>' in page
    assert "correct the name or the image folder" in page and "更正名字或图像目录" in page


def test_texts_never_become_markup(write_page, qa):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    files = {"<i>.jsonl": [qa(f"What is {evil}?", evil), {"text": evil, evil: 1}, qa(image=f"{evil}.png")]}
    for kind in (MultimodalDataset, PlainFiles):
        page, _ = write_page(files, kind=kind)
        assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page and "<i>" not in page
        assert evil in text_of(cards(page)[0])


def test_every_file_is_shown(write_page, qa):
    """A small file beside a large one has its card, its sums and its histograms; names in any script."""
    files = {
        "large.jsonl": [qa(f"{number}?", f"Answer {number}.") for number in range(50)],
        "小.json": [qa("这是什么?", "一只猫。", image="图 片/c.png"), {"a": 1}],
        "<i>.jsonl": [qa()],
    }
    page, _ = write_page(files, num_cards=4)
    found = [card for card in cards(page) if not card["is_bad"]]
    assert len(found) == 4 and sum("一只猫。" in text_of(card) for card in found) == 1
    assert sum("<i>.jsonl:1" in card["at"] for card in found) == 1
    assert {card["language"] for card in found} == {"Latin", "Chinese"}
    figures = page.partition("统计</span></h2>")[2].partition("<h2>")[0]
    assert figures.count("<details") == 4 and figures.count("<details open>") == 1  # all files together are open
    assert [figures.count(f"<b>{name}</b>") for name in ("large", "小", "&lt;i&gt;")] == [1] * 3


def test_grids_are_those_that_the_sample_has(write_page, qa):
    """Several images share the tiles, and a long sample has fewer: the grid drawn is the one that is trained on."""
    alone, pair = qa(image="b.png"), qa("<image><image>", image=["b.png", "图 片/c.png"])

    def grids(record, **settings):
        page, _ = write_page({"a.jsonl": [record]}, settings)
        return [image["grid"] for image in cards(page)[0]["images"]]

    assert grids(alone) == [[3, 1, 1]]
    assert grids(pair, max_tiles=4) == [[2, 1, 1], [1, 2, 1]]
    assert grids(pair, max_tiles=4, max_length=80) == [[1, 1, 0], [1, 1, 0]]


def test_frames_of_a_video(write_page, qa):
    page, _ = write_page({"a.jsonl": [qa("<video>\nAnd <image>?", video="clip", image="b.png")]}, num_cards=2)
    (card,) = cards(page)
    assert [image["name"] for image in card["images"]] == ["Frame-1", "Frame-2", "Frame-3", "b.png"]
    assert card["images"][3]["grid"] == [3, 1, 1]


def test_boxes_are_shares_of_the_sides(write_page, qa):
    (card,) = cards(write_page({"a.jsonl": [qa("Where?", "<box>[[100, 100, 500, 900]]</box>", image="a.png")]})[0])
    assert card["images"][0]["boxes"] == [[0.1, 0.1, 0.5, 0.9]]
    pixels = qa("Where?", "<box>[[36, 12, 180, 60]]</box>", image="b.png", boxes="pixel", width=360, height=120)
    (card,) = cards(write_page({"a.jsonl": [pixels]})[0])
    assert card["images"][0]["boxes"] == [[0.1, 0.1, 0.5, 0.5]]


def test_both_answers_of_a_pair_stand_side_by_side(write_page):
    pairs = [
        {"image": "a.png", "question": "What is it?", "chosen": "A <cat>.", "rejected": "A dog."},
        {"image": "a.png", "question": "What is it?", "chosen": "Same.", "rejected": "Same."},
    ]
    page, complaints = write_page(
        {"pairs.jsonl": pairs}, kind=PreferenceDataset, settings={"too_long": ()}, num_cards=2
    )
    assert len(complaints) == 1 and "pairs.jsonl:2: both answers are 'Same.'" in complaints[0]
    card = cards(page)[0]
    assert "What is it?" in text_of(card) and all(kind != "learn" for kind, _ in card["runs"])
    assert [(name, parts[0]) for name, parts, _ in card["answers"]] == [
        ("chosen", ["learn", "A <cat>.<|im_end|>"]),
        ("rejected", ["learn", "A dog.<|im_end|>"]),
    ]
    assert "prefer the chosen answer" in page


def test_without_a_model(write_page, six_records):
    """Images, boxes and texts are shown, with the standard grid and without tokens."""
    page, complaints = write_page({"data.jsonl": six_records}, kind=PlainFiles)
    found = cards(page)
    assert len(complaints) == 2 and [card["tokens"] for card in found] == [0] * 6
    assert found[2]["images"][0]["grid"] == [3, 1, 1] and found[2]["images"][0]["boxes"] == [[0.1, 0.1, 0.5, 0.5]]
    assert ["learn", "Yes."] in found[0]["runs"] and "<image>" in text_of(found[0])
    assert "No model was given" in page and 'class="pack"' not in page and "What other limits" not in page


def test_many_cards_have_a_folder(write_page, qa, tmp_path, monkeypatch):
    monkeypatch.setattr(cards_module, "MOST_EMBEDDED", 3)
    monkeypatch.setattr("xtuner_plugins.datasets.audit.report.MOST_EMBEDDED", 3)
    records = [qa(f"{number}?", f"Answer {number}", image=["a.png", "b.png"][number % 2]) for number in range(5)]
    page, _ = write_page({"a.jsonl": records})
    assert contents(page)["images"] == ["r_images/000000.jpg", "r_images/000001.jpg"]  # each image once
    assert sorted(path.name for path in (tmp_path / "r_images").iterdir()) == ["000000.jpg", "000001.jpg"]
    (tmp_path / "r_images/000007.jpg").touch()  # of an earlier page
    write_page({"a.jsonl": records})
    assert [Image.open(path).size for path in sorted((tmp_path / "r_images").iterdir())] == [(100, 90), (360, 120)]


def test_images_outside_of_their_folder_are_not_shown(write_page, qa, tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    names = ("../secret.png", str(tmp_path / "secret.png"), "link.png")
    for kind in (MultimodalDataset, PlainFiles):
        page, complaints = write_page({"a.jsonl": [qa(image=name) for name in names]}, kind=kind)
        assert len(complaints) == 3 and contents(page)["images"] == []
        assert [card["reasons"] for card in cards(page)] == [["image_outside"]] * 3


def test_no_cards_and_nothing_usable(write_page, qa):
    page, _ = write_page({"a.jsonl": [{"a": 1}] * 300})
    assert len(cards(page)) == 24 and 'class="pack"' not in page and "and 100 more" in page
    page, _ = write_page({"a.jsonl": [qa()]}, num_cards=0)
    assert cards(page) == [] and "Every record can be trained on" in page


def test_logarithmic_bins():
    assert log_bins(np.array([], np.int64)) == []
    assert log_bins(np.array([0, 0, 2])) == [("0", 2), ("1", 0), ("2", 1)]
    bins = log_bins(np.arange(7, 3000))
    assert bins[:4] == [("7", 1), ("8–11", 4), ("12–15", 4), ("16–23", 8)] and bins[-1] == ("2,048–2,999", 952)
