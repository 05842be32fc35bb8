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


def name(path):
    return path.stem


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def texts(cell):
    """All that a cell's outputs say, as text."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def make(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return cleaned(nbformat.v4.new_notebook(cells=cells))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_outputs_are_committed_and_texts_and_links_are_whole(path):
    """A text in both languages comes before each code cell, and what is committed fits any machine."""
    assert path.stat().st_size < MOST_BYTES
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    for cell in cells:
        assert all(output.get("name") != "stderr" and output.output_type != "error" for output in cell.outputs)
        assert [found for text in texts(cell) for found in ABSOLUTE_PATH.findall(text)] == [], cell.id
    assert read(path) == cleaned(read(path), keep_outputs=True)
    kinds = [cell.cell_type for cell in read(path).cells]
    assert kinds[0] == "markdown" and ("code", "code") not in zip(kinds, kinds[1:], strict=False)
    told = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert [text for text in told if not re.search("[\u4e00-\u9fff]", text) or not re.match("[#*`A-Z]", text)] == []
    links = [link for text in told for link in re.findall(r"\]\(([^)#\s]+)\)", text)]
    assert links and [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_an_absolute_path_would_be_seen():
    assert ABSOLUTE_PATH.search("wrote /home/someone/project: 3") and ABSOLUTE_PATH.search("'/tmp/x'")
    assert not ABSOLUTE_PATH.search("work_dirs/notebooks/a 1/40 <img></img> ./a/b https://host/a/b")


@pytest.mark.release
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_runs_from_a_checkout(path, tmp_path):
    """In a copy of the checkout, so that a user's own runs in `work_dirs` stay. Twice, where it takes seconds."""
    for folder in ("configs", "tools", "xtuner_plugins"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "notebooks").mkdir()
    for _ in range(2 if path.stem == "build_a_llava" else 1):
        executed = execute(path, tmp_path / "notebooks")
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    work = tmp_path / "work_dirs"
    assert written and all(file.is_relative_to(work) for file in written)


def test_the_kernel_is_this_interpreter_and_the_home_stays_empty(tmp_path, monkeypatch):
    """Although the user has registered another kernel under the usual name."""
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    spec = data / "kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/nowhere/python"], "display_name": "other", "language": "python"}))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(data))
    nbformat.write(make("import sys\nimport matplotlib.pyplot\nprint(sys.executable)"), tmp_path / "a.ipynb")
    executed = execute(tmp_path / "a.ipynb", tmp_path)
    assert executed.cells[0].outputs[0].text == sys.executable + "\n"
    assert list(home.rglob("*")) == []
    assert read(tmp_path / "a.ipynb").cells[0].outputs == []  # the file stays as it is


def test_a_warning_and_an_error_stop_it(tmp_path):
    nbformat.write(make("import warnings\nwarnings.warn('mind the step')"), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="cell-00 wrote to stderr(.|\n)*mind the step"):
        execute(tmp_path / "a.ipynb", tmp_path)
    nbformat.write(make("1 / 0"), tmp_path / "a.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(tmp_path / "a.ipynb", tmp_path)


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["build_a_lava"])
    assert "no notebook build_a_lava; there are build_a_llava" in capsys.readouterr().err
