"""Which samples train, what stands for the others, and how one line, one error or one entry each speaks of them."""

import json

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, RecordError, SettingError
from xtuner_plugins.datasets.figures import file_figures
from xtuner_plugins.datasets.left_out import FILLER, FILLER_INDEX, describe, left_out, read_reject_list, require_usable
from xtuner_plugins.datasets.plan.budget import DROPPED


@pytest.fixture
def dataset(data_base, write_data, make_image, qa, tmp_path):
    """Two files, the second twice: long, cut, rejected, empty and broken records beside usable ones."""
    first = write_data([qa("A?"), qa("B?", "word " * 200), qa("word " * 200), qa(answer="")], "first.jsonl")
    rejected_one = qa(image=make_image("a.png") + "/a.png")
    unusable = [qa(image="none.png"), *[{"text": number} for number in range(5)]]
    second = write_data([*unusable, rejected_one, qa()], "second.jsonl")
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text(json.dumps({"file": second, "row": 6}))
    settings = {"max_length": 150, "on_bad_sample": "skip", "reject_list": str(rejected)}
    return MultimodalDataset(data_base, [first, second], repeat_times=[1, 2], **settings)


def test_one_line_one_error_and_an_entry_each(dataset):
    tokens, tiles, fates = dataset.layout(num_workers=0)
    assert not tokens[fates >= DROPPED].any() and not tiles[fates >= DROPPED].any()
    assert describe(dataset, fates) == (
        "data: 4 of 20 samples will train; left out: 10 no_conversations, 2 rejected, 2 image_missing, 1 too_long, "
        "1 empty_answer; of those that train, 1 with their end cut off to fit it"
    )
    # Its two samples have 28 and 150 tokens, and learn 6 and 150.
    first = {"name": "first", "samples": 4, "seen": 2, "tokens": 89, "tiles": 0, "supervised": 78}
    second = {"name": "second", "samples": 16, "seen": 2, "tokens": 30, "tiles": 0, "supervised": 6}
    assert file_figures(dataset) == [first, second]
    entries = left_out(dataset, fates)
    assert [entry["index"] for entry in entries] == np.flatnonzero(fates >= DROPPED).tolist()
    second = [("second", reason) for reason in ("image_missing", *["no_conversations"] * 5, "rejected")]
    expected = [("first", "too_long"), ("first", "empty_answer"), *second, *second]
    assert [(entry["dataset"], entry["dropped"]) for entry in entries] == expected
    assert "first.jsonl:3: too long even with one tile per image" in entries[0]["message"]
    with pytest.raises(RecordError) as caught:
        require_usable(dataset, fates)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 records can't be used:" and len(lines) == 7
    assert "second.jsonl:1: " in lines[1] and "none.png" in lines[1] and "second.jsonl:5: " in lines[5]
    assert lines[6].startswith("and 1 more; mend them, or leave them out: reject_list")
    sample, dropped = dataset[FILLER_INDEX], dataset[5]
    assert sample["labels"].tolist() == [-100] and sample["num_tiles"] == 0 and sample["source"] == FILLER
    assert dropped["message"].startswith(f"{dropped['source']}: ")
    assert sample["tiles"].shape == dropped["tiles"].shape == (0, 3, 112, 112)


def test_rows_are_found_by_the_file_behind_the_path(dataset, tmp_path):
    sources, link, path = dataset.sources, tmp_path / "link.jsonl", tmp_path / "list.jsonl"
    link.symlink_to(sources[0].index.path)
    path.write_text("".join(json.dumps({"file": str(file), "row": 3}) + "\n" for file in (link, "/other")))
    assert read_reject_list(path, sources) == [{3}, set()] and read_reject_list(None, sources) == [set(), set()]
    for text in ("{", '{"file": "a.jsonl"}', '{"file": "a.jsonl", "row": "x"}', "3"):
        path.write_text(text)
        with pytest.raises(SettingError, match="list.jsonl' can't be read .*write it with tools/check_data.py"):
            read_reject_list(path, sources)
