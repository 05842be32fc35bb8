"""Executes the notebooks with this interpreter and writes their outputs.

    python notebooks/execute.py                    # all of them, as `make notebooks` does
    python notebooks/execute.py build_a_llava      # one

Nothing is written to the user's home: Jupyter, IPython and matplotlib keep their files in a temporary directory, and
the kernel is the running interpreter, whichever kernels are registered on the machine.
"""

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1800  # for one cell; a guard against one that hangs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HOMES = (
    "IPYTHONDIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
)


NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, executed in `folder`; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
        ValueError: A cell wrote a warning.
    """
    notebook = cleaned(nbformat.read(path, as_version=4))
    with tempfile.TemporaryDirectory(prefix="notebook-") as home:
        env = {**os.environ, **{name: str(Path(home, name.lower())) for name in HOMES}}
        env |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}  # outputs are those of a CPU
        client = NotebookClient(
            notebook, timeout=TIMEOUT_S, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
        )
        manager = client.create_kernel_manager()
        # No directory is searched for kernels, so `python3` is ipykernel's own entry: this interpreter.
        manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)
        manager.kernel_name = "python3"
        # Socket files in place of TCP ports, which others on the machine could take or reach.
        manager.transport, manager.connection_file = "ipc", str(Path(home, "kernel.json"))
        client.execute(env=env)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"{path.name}: cell {cell.id} wrote to stderr: {output.text[:500]}")
    return cleaned(notebook, keep_outputs=True)


def cleaned(notebook: nbformat.NotebookNode, keep_outputs: bool = False) -> nbformat.NotebookNode:
    """Without what changes from run to run: times, versions, ids; and without outputs unless they are kept."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
        if cell.cell_type == "code" and not keep_outputs:
            cell.outputs, cell.execution_count = [], None
    return notebook


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {path.stem: path for path in NOTEBOOKS}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(known)} (default: all)")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(known)):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    for name in args.names or known:
        path = known[name]
        nbformat.write(execute(path, HERE), path)
        print(f"wrote {path.relative_to(HERE.parent)}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
