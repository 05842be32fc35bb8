import json

from tools import prepare_data
from xtuner_plugins.audit.prepare import RECIPES


def test_status_list_and_complaints(capsys, tmp_path):
    def run(*args):
        return prepare_data.main(list(map(str, args))), capsys.readouterr()

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
