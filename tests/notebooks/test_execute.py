"""The notebooks run from a checkout, and their outputs are committed."""

import sys

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, cleaned, execute
from tests.conftest import ROOT


def test_whole_outputs_are_committed():
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert notebook == cleaned(notebook, keep_outputs=True) and counts == list(range(1, len(counts) + 1))


@pytest.mark.release
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_checkout(path, tmp_path):
    """In a copy of the checkout, so that a user's own runs in `work_dirs` stay. Twice, where it takes seconds."""
    for folder in ("configs", "tools", "xtuner_plugins"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "notebooks").mkdir()
    for _ in range(2 if path.stem == "build_a_llava" else 1):
        execute(path, tmp_path / "notebooks")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and all(file.is_relative_to(tmp_path / "work_dirs") for file in written)


def test_the_kernel_is_this_interpreter_and_a_warning_stops_it(tmp_path):
    def run(source):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(cleaned(notebook), tmp_path / "a.ipynb")
        return execute(tmp_path / "a.ipynb", tmp_path).cells[0].outputs[0].text

    assert run("import sys; print(sys.executable)") == sys.executable + "\n"
    with pytest.raises(ValueError, match="(?s)cell-00 wrote to stderr.*mind it"):
        run("import warnings; warnings.warn('mind it')")
