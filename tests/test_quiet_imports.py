"""What libraries say about themselves stays out of the terminal; what they say about the user's run doesn't."""

QUIET = "from xtuner_plugins.processes import quiet_imports; quiet_imports()\n"
IMPORTS = """
import logging, warnings
warnings.warn("IProgress not found. Please update")  # tqdm, where IPython runs and ipywidgets isn't installed
import deepspeed, bitsandbytes
logging.getLogger("DeepSpeed").warning("WARNING about the run")
"""


def test_imports_are_quiet(run_tool, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for first in (QUIET, ""):
        done = run_tool("-c", first + IMPORTS, env={"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
        warned = [line for line in (done.stdout + done.stderr).splitlines() if "WARN" in line.upper()]
        assert any(line.endswith("about the run") for line in warned) and (len(warned) == 1) == bool(first), warned


def test_no_kernel_is_fetched_from_the_hub(run_tool, tmp_path):
    """On a CPU with bfloat16 instructions bitsandbytes would, where `kernels` is installed; no tool loads that."""
    (tmp_path / "kernels.py").write_text("print('loaded')\ndef get_kernel(*args, **kwargs): print('asked')")
    finish = "from xtuner_plugins.cli.shared import finish; finish(lambda: __import__('kernels'))"
    for code in (f"{QUIET}import bitsandbytes, transformers.modeling_utils", finish):
        done = run_tool("-c", code, env={"PYTHONPATH": f"{tmp_path}:."})
        assert done.stdout == "" and (done.returncode == 0) == (code != finish), done.stdout + done.stderr
    assert "ModuleNotFoundError" in done.stderr
