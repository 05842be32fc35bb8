"""Two folders of results compared, as a user does it."""

import importlib.util
import json

from tests.conftest import ROOT
from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.evaluation.results import Row, write_results
from xtuner_plugins.inference.questions import Question

spec = importlib.util.spec_from_file_location("compare_tool", ROOT / "tools/compare.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def write(folder, *answers, digest="1"):
    folder.mkdir()
    rows = [Row("own", Item(Question(str(n), "?"), ("x",)), a, float(a == "x"), ()) for n, a in enumerate(answers)]
    results = {
        "model": {"model": folder.name, "weights": "0123456789abcdef"},
        "preprocessing": {"max_tiles": 6},
        "settings": {"dtype": "float32"},
        "datasets": {"own": {"hash": digest, "metric": "exact_match"}},
    }
    write_results(folder, results, rows)
    return str(folder)


def test_table_page_and_numbers(tmp_path, capsys):
    one, other = write(tmp_path / "one", "x", "y", "y"), write(tmp_path / "other", "x", "x", "x")
    assert tool.main([one, other, "--html", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json")]) == 0
    assert "+66.7" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["a"]["model"] == "one" and found["datasets"]["own"]["better_b"] == 2
    assert (tmp_path / "c.html").read_text(encoding="utf-8").count('data-kind="b"') == 2


def test_refusals_are_one_line(tmp_path, capsys):
    one, other = write(tmp_path / "one", "x"), write(tmp_path / "other", "x", digest="2")
    for words, said in (((one, other), "asks other questions"), ((one, str(tmp_path)), "holds no results.json")):
        assert tool.main(list(words)) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and said in error
