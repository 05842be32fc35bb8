import json

from xtuner_plugins.audit.prepare import RECIPES


def test_status_list_and_complaints(tool, tmp_path):
    status, said, _ = tool("prepare_data", "--list")
    assert status == 0 and all(name in said and row.files in said for name, row in RECIPES.items())
    source, out, left_out = (tmp_path / name for name in ("train.jsonl", "out.jsonl", "out.jsonl.left_out.txt"))
    good = json.dumps({"filename": "a.jpg", "caption": "A sign."}) + "\n"
    source.write_text(good + "{}\n" * 70)
    status, said, _ = tool("prepare_data", "textocr-gpt4o", source, out)
    assert status == 1 and said.count("not a record of") == 50 and "70 left out" in said
    assert len(left_out.read_text().splitlines()) == 70
    source.write_text(good)
    status, said, _ = tool("prepare_data", "textocr-gpt4o", source, out)
    assert status == 0 and not left_out.exists() and "1 records read, 1 written" in said
    status, _, error = tool("prepare_data", "textocr", source, out)
    assert status == 2 and error.startswith("error: 'textocr' is unknown; known are")
