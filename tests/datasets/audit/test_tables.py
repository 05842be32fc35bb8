import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.audit.tables import answers, languages, shares, tabulate, what_if
from xtuner_plugins.datasets.plan.lengths import DROPPED, SHRUNK, TRUNCATED


@pytest.fixture
def mixture(data_base, write_data, make_image, qa, tmp_path):
    """A dataset over two files with its reports."""
    folder = make_image("b.png", 360, 120)
    photos = [qa("What is there?", "A cat.", image="b.png") for _ in range(3)] + [qa(image="none.png")]
    texts = [qa("这是什么？", "一只猫。"), qa("Count.", "one two three " * 60), qa("What?", "A cat.")]

    def open_with(**settings):
        dataset = MultimodalDataset(
            str(data_base),
            [write_data(photos, "photos.jsonl"), write_data(texts, "texts.jsonl")],
            folder,
            cache_dir=str(tmp_path / "cache"),
            on_bad_sample="skip",
            **settings,
        )
        return dataset, check_dataset(dataset, num_workers=0, complain=lambda text: None)

    return open_with


def test_shares_are_those_of_the_samples_that_train(mixture):
    dataset, reports = mixture(repeat_times=[2.5, 1])
    rows = shares(dataset, reports)
    tokens, tiles, fates = dataset.sizes(num_workers=0)
    first = np.arange(len(dataset)) < dataset.ends[0]
    for row, kept in zip(rows, (first, ~first), strict=True):
        kept = kept & (fates < DROPPED)
        assert (row["samples"], row["tokens"], row["tiles"]) == (kept.sum(), tokens[kept].sum(), tiles[kept].sum())
    assert rows[0]["repeat"] == 2.5 and sum(row["tokens_share"] for row in rows) == pytest.approx(1)


def test_languages_and_answers(mixture):
    dataset, reports = mixture()
    assert [(row["name"], row["in_chinese"], row["count"]) for row in languages(dataset, reports)] == [
        ("Latin", "拉丁文字", 5),
        ("Chinese", "中文", 1),
    ]
    found = answers(dataset, reports)
    assert found["count"] == 6 and found["words"]["max"] == 180
    assert [(row["text"], row["count"]) for row in found["frequent"]] == [("A cat.", 4)]
    assert [(row["text"], row["count"]) for row in found["openings"]] == [("a cat", 4)]


def test_the_table_says_what_a_run_with_these_limits_would_find(mixture):
    dataset, _ = mixture(max_length=100, repeat_times=[2, 1])
    rows = what_if(dataset, num_workers=0)
    assert [row["is_current"] for row in rows].count(True) == 1
    for row in rows:
        other, _ = mixture(max_length=row["max_length"], max_tiles=row["max_tiles"], repeat_times=[2, 1])
        tokens, tiles, fates = other.sizes(num_workers=0)
        expected = dict(
            samples=(fates < DROPPED).sum(),
            shrunk=(fates == SHRUNK).sum(),
            cut=(fates == TRUNCATED).sum(),
            too_long=(fates == DROPPED).sum(),
            tokens=tokens.sum(),
            tiles=tiles.sum(),
        )
        assert {key: row[key] for key in expected} == expected


def test_a_file_with_limits_of_its_own_keeps_lower_ones(mixture):
    dataset, _ = mixture(dataset_settings=[{"max_tiles": 2}, None])
    tiles = {row["max_tiles"]: row["tiles"] for row in what_if(dataset, num_workers=0)}
    assert tiles[12] == tiles[6] == tiles[4] == 3 * 3 and tiles[1] == 3


def test_without_a_model_and_without_records(write_data, qa, tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    for records in ([qa()], [{"a": 1}]):
        dataset = PlainFiles([write_data(records)], [None])
        reports = check_dataset(dataset, num_workers=0, complain=lambda text: None)
        tables = tabulate(dataset, reports)
        assert tables.what_if == [] and tables.shares[0]["samples"] == tables.answers["count"] == int(
            "a" not in records[0]
        )
