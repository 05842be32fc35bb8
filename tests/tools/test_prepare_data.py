import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(monkeypatch, *args):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools/prepare_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, args)])
    return tool.main()


def test_list_names_every_data_set(monkeypatch, capsys):
    assert run(monkeypatch, "--list") == 0
    printed = capsys.readouterr().out
    assert "llava-pretrain" in printed and "blip_laion_cc_sbu_558k.json" in printed and "558128" in printed


def test_status_tells_whether_all_is_well(monkeypatch, capsys, tmp_path):
    good = {"image": "a.jpg", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]}
    source = tmp_path / "gpt-4o.jsonl"
    source.write_text(json.dumps(good) + "\n")
    assert run(monkeypatch, "sharegpt-4o", source, tmp_path / "out.jsonl") == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == good
    source.write_text(json.dumps(good) + "\n{}\n")
    assert run(monkeypatch, "sharegpt-4o", source, tmp_path / "out.jsonl") == 1
    assert f"{source}:2: no conversations" in capsys.readouterr().out
    assert run(monkeypatch, "sharegpt-4o", tmp_path / "none", tmp_path / "o") == 1
    assert not (tmp_path / "o").exists()
