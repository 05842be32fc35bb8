"""The notebooks run from a checkout, and what is committed is what they print, with texts in both languages."""

import json
import re
import sys

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, cleaned, execute, main
from tests.conftest import ROOT

MOST_BYTES = 300_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.~</])/(?:\w[\w.-]*/)+\w")


def read(path):
    return nbformat.read(path, as_version=4)


def write(path, source):
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(cleaned(nbformat.v4.new_notebook(cells=cells)), path)
    return path


def test_outputs_are_committed_and_texts_and_links_are_whole():
    """A text in both languages comes before each code cell, and what is committed fits any machine."""
    assert ABSOLUTE_PATH.search("wrote /home/someone/project: 3") and ABSOLUTE_PATH.search("'/tmp/x'")
    assert not ABSOLUTE_PATH.search("work_dirs/notebooks/a 1/40 <img></img> ./a/b https://host/a/b")
    for path in NOTEBOOKS:
        assert path.stat().st_size < MOST_BYTES and read(path) == cleaned(read(path), keep_outputs=True)
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        for output in outputs:
            assert output.get("name") != "stderr" and output.output_type != "error"
            shown = [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
            assert not ABSOLUTE_PATH.search("\n".join([output.get("text", ""), *shown])), output
        kinds = " ".join(cell.cell_type for cell in read(path).cells)
        assert kinds.startswith("markdown") and "code code" not in kinds
        told = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        assert all(re.search("[\u4e00-\u9fff]", text) and re.match("[#*`A-Z]", text) for text in told)
        links = [link for text in told for link in re.findall(r"\]\(([^)#\s]+)\)", text)]
        assert links and [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.release
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_checkout(path, tmp_path):
    """In a copy of the checkout, so that a user's own runs in `work_dirs` stay. Twice, where it takes seconds."""
    for folder in ("configs", "tools", "xtuner_plugins"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "notebooks").mkdir()
    for _ in range(2 if path.stem == "build_a_llava" else 1):
        executed = execute(path, tmp_path / "notebooks")
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and all(file.is_relative_to(tmp_path / "work_dirs") for file in written)


def test_the_kernel_is_this_interpreter_and_the_home_stays_empty(tmp_path, monkeypatch):
    """Although the user has registered another kernel under the usual name."""
    home, spec = tmp_path / "home", tmp_path / "data/kernels/python3/kernel.json"
    home.mkdir()
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/nowhere/python"], "display_name": "other", "language": "python"}))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    path = write(tmp_path / "a.ipynb", "import sys\nimport matplotlib.pyplot\nprint(sys.executable)")
    executed = execute(path, tmp_path)
    assert executed.cells[0].outputs[0].text == sys.executable + "\n" and list(home.rglob("*")) == []
    assert read(path).cells[0].outputs == []  # the file stays as it is


def test_a_warning_an_error_and_an_unknown_name_stop_it(tmp_path, capsys):
    with pytest.raises(ValueError, match="(?s)cell-00 wrote to stderr.*mind it"):
        execute(write(tmp_path / "a.ipynb", "import warnings\nwarnings.warn('mind it')"), tmp_path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(write(tmp_path / "a.ipynb", "1 / 0"), tmp_path)
    with pytest.raises(SystemExit):
        main(["build_a_lava"])
    assert "no notebook build_a_lava; there are build_a_llava" in capsys.readouterr().err
