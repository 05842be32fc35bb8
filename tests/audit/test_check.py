"""The check as a library: what is opened, what it costs again, and what it leaves for training."""

import os

import pytest
from PIL import Image

from xtuner_plugins.audit import check, opening
from xtuner_plugins.audit.check import PlainFiles, check_dataset, stops
from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset
from xtuner_plugins.datasets.plan.measure import Measure


@pytest.fixture
def files(data_base, write_data, six_records, tmp_path):
    return dict(base=str(data_base), data_paths=write_data(six_records), image_folders=str(tmp_path / "images"))


def test_reports_and_the_reject_list(files, tmp_path):
    plain = PlainFiles(files["data_paths"], files["image_folders"])
    assert plain.sources[0].tiling == DynamicTiling(1, 12, 448, True)
    for dataset, num_workers in ((plain, 0), (MultimodalDataset(**files), 2)):
        said, done = [], []
        say = {"say": lambda report, each, to=said: to.append((report.message(each), each)), "progress": done.append}
        (report,) = check_dataset(dataset, num_workers=num_workers, **say)
        assert [(each.row, each.reason) for _, each in said] == [(1, "image_missing"), (4, "no_conversations")]
        assert all(stops(each) and text.startswith(f"{files['data_paths']}:{each.row + 1}: ") for text, each in said)
        assert report.found == [each for _, each in said]
        assert report.records["row"].tolist() == [0, 2, 3, 5] and report.images["row"].tolist() == [0, 2, 5, 5]
        assert report.images[["width", "height"]].tolist() == [(100, 90), (360, 120)] * 2
        assert sum(done) == 6 and check.count_samples(dataset, [report]) == 4
    for row in range(6):  # what is seen is what training gets
        sample = dataset.load(0, row) if row in report.records["row"] else None
        expected = sample and (len(sample["input_ids"]), sample["num_tiles"], (sample["labels"] >= 0).sum())
        assert (report.tokens[row], report.tiles[row], report.supervised[row]) == (expected or (0, 0, 0))

    path = tmp_path / "bad.jsonl"
    assert check.write_reject_list(path, [report]) == 2
    (again,) = check_dataset(MultimodalDataset(**files, reject_list=str(path)), num_workers=0)
    assert not again.complaints and not again.warnings and again.num_rejected == 2
    assert check.write_reject_list(path, [again]) == 2


def test_the_lengths_of_a_check_are_those_of_a_run(files, tmp_path, monkeypatch):
    """A damaged image leaves them as they are: they are measured by headers, check or not."""
    path, settings = tmp_path / "images/b.png", files | {"on_bad_sample": "skip"}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (report,) = check_dataset(MultimodalDataset(**settings), num_workers=0)
    assert [each.row for each in report.found] == [1, 2, 4, 5] and report.tiles.tolist() == [1] + [0] * 5
    measured, real = [], Measure.rows
    monkeypatch.setattr(Measure, "rows", lambda self, rows, *look: measured.extend(rows) or real(self, rows, *look))
    assert MultimodalDataset(**settings).is_measured() and measured == []
    found = MultimodalDataset(**settings).layout()
    assert measured == [1, 4]  # only what was unusable is looked at again
    (again,) = check_dataset(MultimodalDataset(**settings), num_workers=0)
    assert again.found == report.found and again.images.tobytes() == report.images.tobytes()
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "other"))
    other = MultimodalDataset(**settings)
    assert not other.is_measured()
    assert [each.tolist() for each in found] == [each.tolist() for each in other.layout(num_workers=0)]


def test_warnings_and_what_never_fits(data_base, write_data, make_image, qa):
    records = [qa("<image>Is <image_1> it?", image="a.png"), qa("", ""), qa("word " * 99), qa("<video>", video="clip")]
    records[3]["conversations"][1:1] = qa("", " ")["conversations"][::-1]  # one of its answers is empty
    for name, side in (("a", 100), ("clip/0", 50), ("clip/1", 60)):
        folder = make_image(f"{name}.png", side, 40)
    dataset = MultimodalDataset(str(data_base), write_data(records), folder, max_length=90)
    (report,) = check_dataset(dataset, num_workers=0)
    found = [(each.row, each.reason, each.is_warning, stops(each)) for each in report.found]
    expected = [(0, "foreign_form", True, False), (1, "empty_answer", False, False), (2, "too_long", False, True)]
    expected.append((3, "empty_answer", True, False))
    assert found == expected and report.records["row"].tolist() == [0, 3]
    assert report.images[["row", "width"]].tolist() == [(0, 100), (3, 50)]  # of a video, its first frame
    assert report.warnings == {"foreign_form": 1, "empty_answer": 2} and report.complaints == {"too_long": 1}


def test_nothing_is_opened_twice_unless_it_has_changed(tmp_path, monkeypatch, write_data, make_image, qa):
    monkeypatch.setattr(opening, "CHUNK", 2)
    for number in range(4):
        folder = make_image(f"{number}.png", 100 + number, 90)
    records = [qa(f"What is {number}?", image=f"{number % 4}.png") for number in range(5)]
    path, names, real = write_data([*records, qa(image="none.png"), qa(), {"a": 1}]), [], opening.load_image
    monkeypatch.setattr(opening, "load_image", lambda path, *more: names.append(os.path.basename(path)) or real(path))

    def opened():
        """Tables and complaints, and images that were decoded."""
        names.clear()
        opening._look_at_file.cache_clear()
        (report,) = check_dataset(PlainFiles(path, folder), num_workers=0)
        return [report.records.tolist(), report.images.tobytes(), report.found], sorted(names)

    first = opened()
    assert first[1] == ["0.png", "1.png", "2.png", "3.png"]  # 0.png is in two records
    assert opened() == (first[0], [])
    parts = sorted((tmp_path / "cache").glob("*/*/*.npz"))
    parts[0].unlink()  # by a kill
    assert opened() == (first[0], ["0.png", "1.png"])
    whole = parts[1].read_bytes()
    for content in (b"", whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:]):
        parts[1].write_bytes(content)
        assert opened() == (first[0], ["2.png", "3.png"])
    Image.new("RGB", (50, 90)).save(tmp_path / "images/2.png")
    changed, seen = opened()
    assert seen == ["2.png", "3.png"] and changed != first[0]
    Image.new("RGB", (70, 90)).save(tmp_path / "images/none.png")
    assert [each.reason for each in opened()[0][2]] == ["no_conversations"]
    (tmp_path / "images/1.png").unlink()
    assert [each.reason for each in opened()[0][2]] == ["image_missing", "no_conversations"]
