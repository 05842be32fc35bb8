"""The checker as a library: reports, reject list."""

import json

import numpy as np
import pytest

from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.audit.check import check_dataset, count_folders, histogram, write_reject_list
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.samplers import PlanSampler


@pytest.fixture
def files(data_base, write_data, six_records, tmp_path):
    return dict(base=str(data_base), data_paths=write_data(six_records), image_folders=str(tmp_path / "images"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reports(files, num_workers):
    complaints, done = [], []
    (report,) = check_dataset(
        MultimodalDataset(**files), num_workers=num_workers, complain=complaints.append, progress=done.append
    )
    assert (report.num_records, report.num_wrong, report.num_images, sum(done)) == (6, 2, 4, 6)
    assert report.rejected == [(1, 2, "image_missing"), (4, 5, "no_conversations")]
    assert [text.split(" ")[0] for text in complaints] == [f"{files['data_paths']}:{line}:" for line in (2, 5)]
    assert report.column("tiles").tolist() == [1, 4, 0, 5] and report.column("turns").tolist() == [2] * 4
    assert report.column("width").tolist() == [100, 360, 100]


def test_files_without_a_model(files):
    complaints = []
    (report,) = check_dataset(
        PlainFiles([files["data_paths"]], [files["image_folders"]]), num_workers=0, complain=complaints.append
    )
    assert report.num_wrong == 2 and report.num_images == 4 and report.column("tokens").sum() == 0


def test_training_leaves_out_what_is_on_the_reject_list(files, tmp_path):
    (report,) = check_dataset(MultimodalDataset(**files), num_workers=0, complain=lambda text: None)
    assert write_reject_list(tmp_path / "bad.jsonl", [report]) == 2
    dataset = MultimodalDataset(**files, reject_list=str(tmp_path / "bad.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert [index for index in range(6) if "dropped" in dataset[index]] == [1, 4]  # although it says 'raise'
    sampler = PlanSampler(dataset, seed=0, group_by="length", group_size=2)
    assert sorted(sampler.order(0).tolist()) == [0, 2, 3, 5]
    assert [entry["dropped"] for entry in sampler.left_out()] == ["rejected"] * 2
    for content in ("not json", '{"row": 1}'):
        (tmp_path / "wrong.jsonl").write_text(content)
        with pytest.raises(SettingError, match="wrong.jsonl"):
            MultimodalDataset(**files, reject_list=str(tmp_path / "wrong.jsonl"))


def test_histogram():
    assert histogram(np.array([], np.int64)) == []
    assert histogram(np.array([3, 3, 5])) == [("3", 2), ("4", 0), ("5", 1)]
    bins = histogram(np.arange(100))
    assert bins[0] == ("0-9", 10) and bins[-1] == ("90-99", 10) and sum(count for _, count in bins) == 100


def test_files_that_share_a_folder_are_counted_together(tmp_path):
    """Whatever one of them doesn't name, the other may; a record that can't be read names nothing."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "images" / name).touch()
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    for name, images in {"one": ["a.jpg", "none.jpg"], "two": ["b.jpg"]}.items():
        lines = [json.dumps({"image": image, "conversations": turns}) for image in images]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "{}"]) + "\n")
    paths, done = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two", "two")], []
    dataset = PlainFiles(paths, [str(tmp_path / "images"), f"{tmp_path}/images/", None])
    (count,) = count_folders(dataset, done.append)
    assert (count.num_named, count.missing, count.superfluous) == (3, ["none.jpg"], ["c.jpg"])
    assert sum(done) == 3 + 2 + 2
