"""Whole files of other trainers' records, converted: what training makes of them stays the same."""

import base64
import gzip
import json
import os
from pathlib import Path

import pytest

from tests.datasets.records.test_kinds import FORMS, OURS, fuzz_kinds
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.audit.convert import convert, decode_data_url, meaning, to_raw
from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records.records import parse_record

RED, BLUE = fuzz_kinds.data_url(), fuzz_kinds.data_url("blue")


def parts(*urls, text="What?"):
    images = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    asked = {"role": "user", "content": [*images, {"type": "text", "text": text}]}
    return {"messages": [asked, {"role": "assistant", "content": "Red."}]}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def images(make_image):
    make_image("a.png", 100, 90)
    return make_image("b.png", 360, 120)


def test_ids_labels_and_tiles_before_and_after(data_base, write_data, images, tmp_path):
    records = [theirs for theirs, _ in FORMS.values()]
    source, out = write_data(records, "theirs.json"), tmp_path / "ours.jsonl"
    result = convert(source, out, image_folder=images)
    assert result.num_read == result.num_written == len(FORMS) and not result.complaints
    assert result.kinds == dict.fromkeys(FORMS, 1)
    before, after = (
        MultimodalDataset(data_base, str(path), images, cache_dir=str(tmp_path / "cache")) for path in (source, out)
    )
    for number in range(len(FORMS)):
        one, other = before[number], after[number]
        assert all(one[key].tolist() == other[key].tolist() for key in ("input_ids", "labels", "tiles"))
    written = read(out)
    assert all("conversations" in record or "messages" in record for record in written)
    assert written[list(FORMS).index("swift-objects")] == FORMS["swift-objects"][1]
    assert written[list(FORMS).index("llava")] == OURS
    again = convert(out, tmp_path / "again.jsonl", image_folder=images)
    assert again.kinds.keys() <= {"llava", "messages"} and (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()


def test_images_inside_records_become_files(data_base, write_data, tmp_path):
    """Each once, by its content, and the pixels are those of the record."""
    records = [parts(RED, BLUE), parts(RED), {"images": [RED], "instruction": "<image>What?", "output": "Red."}]
    source, out, folder = write_data(records), tmp_path / "ours.jsonl", tmp_path / "written"
    result = convert(source, out, image_folder=folder)
    assert (result.num_written, result.num_images) == (3, 2) and result.kinds == {"data-url": 3}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.read_bytes() for path in files} == {base64.b64decode(url.split(",")[1]) for url in (RED, BLUE)}
    assert all(os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep) for path in files)
    assert "base64" not in out.read_text()
    dataset = MultimodalDataset(data_base, str(out), str(folder), cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["tiles"][0, 0].float().mean() > 200 and dataset[1]["num_tiles"] == dataset[2]["num_tiles"] == 1
    assert dataset[1]["tiles"].tolist() == dataset[2]["tiles"].tolist()


BAD = {
    "data_url": [parts("data:image/png;base64,***"), parts("data:image/png,AAAA"), parts("data:")],
    "image_unreadable": [parts("data:image/png;base64,AAAA"), parts("data:image/svg+xml;base64,PHN2Zy8+")],
    "no_conversations": [{"text": "a"}, {"prompt": "a", "chosen": "b", "rejected": "c"}],
    "image_missing": [FORMS["swift-objects"][0]],
    "record_type": [[], 3],
}


def test_what_is_left_out_is_counted_with_its_reason(write_data, tmp_path):
    bad = [record for records in BAD.values() for record in records]
    source, out = write_data([FORMS["alpaca"][0], *bad]), tmp_path / "ours.jsonl"
    result = convert(source, out, image_folder=tmp_path / "written")
    assert (result.num_read, result.num_written) == (1 + len(bad), 1) == (1 + len(result.complaints), len(read(out)))
    assert result.reasons == {reason: len(records) for reason, records in BAD.items()} and result.kinds[""] == 3
    assert all(text.startswith(f"{source}:{number}: ") for number, text in enumerate(result.complaints, 2))


def test_only_the_kind_that_was_named(write_data, tmp_path):
    source = write_data([FORMS["alpaca"][0], FORMS["swift-query"][0]])
    result = convert(source, tmp_path / "out.jsonl", kind="alpaca")
    assert (
        result.num_written == 1 and result.reasons == {"kind": 1} and "swift-query, not alpaca" in result.complaints[0]
    )
    for kind, words in {"nothing": "is unknown", "internvl-meta": "isn't converted; name the meta file"}.items():
        with pytest.raises(SettingError, match=words):
            convert(source, tmp_path / "none.jsonl", kind=kind)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_source_is_never_overwritten_and_a_crash_leaves_nothing(write_data, tmp_path, monkeypatch):
    source = write_data([FORMS["alpaca"][0]])
    with pytest.raises(SettingError, match="is the file that is read"):
        convert(source, source)
    monkeypatch.setattr("xtuner_plugins.datasets.audit.convert.to_raw", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(source, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_an_image_needs_a_folder(write_data, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("earlier")
    with pytest.raises(SettingError, match=r"data.jsonl:2: the record holds an image .*--image-folder"):
        convert(write_data([FORMS["alpaca"][0], parts(RED)]), out)
    assert out.read_text() == "earlier"


def test_without_a_usable_record_nothing_is_written(write_data, tmp_path):
    out = tmp_path / "out.jsonl"
    for before in (None, "earlier"):
        if before:
            out.write_text(before)
        result = convert(write_data([{"text": "a"}]), out)
        assert (result.num_read, result.num_written, len(result.complaints)) == (1, 0, 1)
        assert (out.read_text() if out.exists() else None) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]


def test_compressed_files_are_converted(write_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    plain = write_data([FORMS["alpaca"][0], FORMS["swift-query"][0]])
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    results = [convert(source, tmp_path / f"{number}.jsonl") for number, source in enumerate((plain, packed))]
    assert [result.num_written for result in results] == [2, 2]
    assert read(tmp_path / "0.jsonl") == read(tmp_path / "1.jsonl")


ODD = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Is <image> HTML?"}]},
            {"role": "assistant", "content": "b"},
        ]
    },
    {"conversations": [{"from": "system", "value": ""}, *fuzz_kinds.turns(["a", "b"])]},
    {
        "conversations": [
            *fuzz_kinds.turns(["a", "b"]),
            {"from": "human", "value": "c"},
            {"from": "gpt", "value": "d", "loss": False},
        ]
    },
    {"conversations": [*fuzz_kinds.turns(["a", " ", "c", "d"])]},
    {"video": "a.mp4", "image": "b.jpg", "conversations": fuzz_kinds.turns(["<video><image>a", "b"])},
    {"id": 7, "boxes": "normalized", "system": "s", "conversations": fuzz_kinds.turns(["<video> in HTML", "b"])},
]


@pytest.mark.parametrize("raw", ODD, ids=str)
def test_what_is_written_means_the_same(raw):
    record = parse_record(raw, "f:1")
    written = to_raw(record)
    assert meaning(parse_record(written, "f:1")) == meaning(record) and written.get("id") == raw.get("id")


def test_data_urls():
    assert decode_data_url("data:image/png;base64,AAEC", "f:1") == b"\0\1\2"
    for url in ("data:image/png;base64,A", "data:image/png;base64,A\u00e9==", "data:;base64", "data:text/plain,a"):
        with pytest.raises(RecordError, match="f:1: "):
            decode_data_url(url, "f:1")
