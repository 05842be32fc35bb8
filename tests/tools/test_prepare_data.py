import base64
import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from xtuner_plugins.datasets import PreferenceDataset
from xtuner_plugins.datasets.audit.published import RECIPES
from xtuner_plugins.datasets.records.kinds import KINDS

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
    assert f"{source}:2: no conversations" in capsys.readouterr().out
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


def test_convert_prints_kinds_counts_and_what_is_left_out(monkeypatch, capsys, tmp_path):
    source, out = tmp_path / "theirs.json", tmp_path / "ours.jsonl"
    alpaca = {"instruction": "What?", "input": "", "output": "This."}
    source.write_text(json.dumps([alpaca, GOOD, {"text": "\ud800"}]))
    assert run(monkeypatch, "convert", source, out) == 1
    printed = capsys.readouterr().out
    assert "kinds: 1 alpaca, 1 llava, 1 of no known kind" in printed
    assert f"3 records read, 2 written to {out}, 1 left out (1 no_conversations)" in printed
    assert f"{source}:1: no conversations" in (tmp_path / "ours.jsonl.left_out.txt").read_text()
    assert [json.loads(line)["conversations"][0]["value"] for line in out.read_text().splitlines()] == ["What?"] * 2
    assert run(monkeypatch, "convert", source, out, "--from", "alpaca") == 1
    assert "2 left out (2 kind)" in capsys.readouterr().out
    assert run(monkeypatch, "convert", tmp_path / "none", out) == 2
    assert "isn't there" in capsys.readouterr().err.splitlines()[-1]
    assert run(monkeypatch, "convert", source, out, "--from", "alpacca") == 2
    assert "error: the kind 'alpacca' is unknown; known are" in capsys.readouterr().err


def test_the_command_of_a_refusal_converts_the_file(run_tool, tmp_path):
    """An image inside a record: the refusal's own command is run as it stands."""
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(image)
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    source = tmp_path / "my data.jsonl"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Red."}]
    source.write_text(json.dumps({"messages": turns}) + "\n")
    done = run_tool("tools/check_data.py", source, "--workers", 0)
    command = shlex.split(done.stdout.split("run: ")[1].splitlines()[0])
    assert done.returncode == 1 and command[:2] == ["python", "tools/prepare_data.py"]
    done = run_tool(*command[1:])
    assert done.returncode == 0 and "1 different images written" in done.stdout, done.stdout + done.stderr
    out, folder = tmp_path / "my data.converted.jsonl", tmp_path / "my data.images"
    assert run_tool("tools/check_data.py", out, "--image-folder", folder, "--workers", 0).returncode == 0


def test_kinds_are_listed_and_options_go_with_their_command(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "--kinds") == 0
    printed = capsys.readouterr().out
    assert all(line.split()[0] == kind.name for line, kind in zip(printed.splitlines(), KINDS, strict=True))
    for args in (
        ["convert", "a", "b", "--coco", "2014"],
        ["sharegpt-4o", "a", "b", "--from", "alpaca"],
        ["convert", "a"],
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *args)
    assert "--from goes with convert" in capsys.readouterr().err
