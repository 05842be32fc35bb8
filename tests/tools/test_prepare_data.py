import importlib.util
import json
import sys
from pathlib import Path

from PIL import Image

from xtuner_plugins.datasets import PreferenceDataset
from xtuner_plugins.datasets.audit.published import RECIPES

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"image": "a.jpg", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]}


def run(monkeypatch, *args):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools/prepare_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, args)])
    return tool.main()


def test_list_names_every_data_set(monkeypatch, capsys):
    assert run(monkeypatch, "--list") == 0
    printed = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert name in printed.splitlines() and recipe.file in printed and recipe.images in printed
    assert "558,128 (copies of LLaVA-Pretrain)" in printed and "no count is published" in printed
    assert "as meta.json says, file by file" in printed and "rule      the best answer against the worst" in printed


def test_status_tells_whether_all_is_well(monkeypatch, capsys, tmp_path):
    source, out = tmp_path / "gpt-4o.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(GOOD) + "\n")
    assert run(monkeypatch, "sharegpt-4o", source, out) == 1
    assert "1 records, the published gpt-4o.jsonl has 57,289" in capsys.readouterr().out
    assert run(monkeypatch, "sharegpt-4o", source, out, "--any-count") == 0
    assert json.loads(out.read_text()) == GOOD
    source.write_text(json.dumps(GOOD) + "\n{}\n")
    assert run(monkeypatch, "sharegpt-4o", source, out, "--any-count") == 1
    assert f"{source}:2: no conversation" in capsys.readouterr().out
    assert run(monkeypatch, "sharegpt-4o", tmp_path / "none", tmp_path / "o") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ") and not (tmp_path / "o").exists()
    assert run(monkeypatch, "sharegpt-5o", source, tmp_path / "o") == 2
    assert "error: 'sharegpt-5o' is unknown; known are" in capsys.readouterr().err


def test_many_complaints_go_to_a_file(monkeypatch, capsys, tmp_path):
    source, out = tmp_path / "train.jsonl", tmp_path / "out.jsonl"
    good = {"filename": "a.jpg", "caption": "A sign."}
    source.write_text(json.dumps(good) + "\n" + "{}\n" * 70)
    assert run(monkeypatch, "textocr-gpt4o", source, out) == 1
    printed = capsys.readouterr().out
    left_out = tmp_path / "out.jsonl.left_out.txt"
    assert printed.count("not a record of") == 50 and f"and 20 more in {left_out}" in printed
    assert "no count is published for train.jsonl: nothing to compare 71 with" in printed
    assert len(left_out.read_text().splitlines()) == 70
    source.write_text(json.dumps(good) + "\n")
    assert run(monkeypatch, "textocr-gpt4o", source, out) == 0 and not left_out.exists()


def test_images_that_are_not_there(monkeypatch, capsys, tmp_path):
    (tmp_path / "a.jpg").touch()
    source = tmp_path / "gpt-4o.jsonl"
    source.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"image": "b.jpg"}) + "\n")
    args = (source, tmp_path / "out.jsonl", "--any-count", "--image-folder", tmp_path)
    assert run(monkeypatch, "sharegpt-4o", *args) == 1
    assert f"{source}:2: 'b.jpg' isn't in" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl").read_text())["image"] == "a.jpg"


def test_pairs_of_a_release_train(toy_base, monkeypatch, capsys, tmp_path):
    """MMPR as unpacked: what is written trains with the image folder beside it."""
    (tmp_path / "images/set").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images/set/a.jpg")
    pair = {"image": "a.jpg", "question": "What?", "chosen": "A cat.", "rejected": "A dog."}
    (tmp_path / "annotations/s.jsonl").write_text(
        json.dumps(pair) + "\n" + json.dumps(pair | {"image": "b.jpg"}) + "\n"
    )
    entry = {"root": "MMPR-v1.2/images/set", "annotation": "MMPR-v1.2/annotations/s.jsonl", "length": 2}
    (tmp_path / "meta.json").write_text(json.dumps({"s": entry | {"repeat_time": 2}}))
    out, images = tmp_path / "pairs.jsonl", tmp_path / "images"
    assert run(monkeypatch, "mmpr-v1.2", tmp_path, out, "--image-folder", images) == 1
    printed = capsys.readouterr().out
    assert printed.count("s.jsonl:2: 'set/b.jpg' isn't in") == 2 and "4 records read, 2 written" in printed
    assert "rule: as meta.json says" in printed and "another version" not in printed
    dataset = PreferenceDataset(
        str(toy_base), str(out), str(images), max_length=2000, cache_dir=str(tmp_path / "cache")
    )
    assert len(dataset) == 2 and dataset[0]["num_tiles"] == 1 and len(dataset[0]["branches"]) == 3
