import importlib.util
import json
import sys

from tests.conftest import ROOT
from xtuner_plugins.audit.prepare import RECIPES


def test_status_list_and_complaints(monkeypatch, capsys, tmp_path):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools/prepare_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, args)])
        return tool.main(), capsys.readouterr()

    status, printed = run("--list")
    assert status == 0 and all(name in printed.out and row.files in printed.out for name, row in RECIPES.items())
    source, out, left_out = (tmp_path / name for name in ("train.jsonl", "out.jsonl", "out.jsonl.left_out.txt"))
    good = json.dumps({"filename": "a.jpg", "caption": "A sign."}) + "\n"
    source.write_text(good + "{}\n" * 70)
    status, printed = run("textocr-gpt4o", source, out)
    assert status == 1 and printed.out.count("not a record of") == 50 and "70 left out" in printed.out
    assert len(left_out.read_text().splitlines()) == 70
    source.write_text(good)
    status, printed = run("textocr-gpt4o", source, out)
    assert status == 0 and not left_out.exists() and "1 records read, 1 written" in printed.out
    status, printed = run("textocr", source, out)
    assert status == 2 and printed.err.startswith("error: 'textocr' is unknown; known are")
