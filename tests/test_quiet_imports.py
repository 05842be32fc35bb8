"""What libraries say about themselves stays out of the terminal; what they say about the user's run doesn't."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

IMPORTS = """
import logging, warnings
warnings.warn("IProgress not found. Please update")  # tqdm, where IPython runs and ipywidgets isn't installed
import deepspeed, bitsandbytes
logging.getLogger("DeepSpeed").warning("WARNING about the run")
"""


@pytest.mark.parametrize("first", ["from xtuner_plugins.processes import quiet_imports; quiet_imports()\n", ""])
def test_imports_are_quiet(first):
    env = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", first + IMPORTS], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "WARN" in line.upper()]
    assert any(line.endswith("about the run") for line in warnings) and (len(warnings) == 1) == bool(first), warnings


def test_bitsandbytes_asks_the_hub_for_no_kernel(tmp_path):
    """It would on a CPU with bfloat16 instructions, where the package `kernels` is installed."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **kwargs): print('asked')")
    quiet = "from xtuner_plugins.processes import quiet_imports; quiet_imports()"
    code = f"{quiet}; import bitsandbytes, transformers.modeling_utils"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "asked" not in done.stdout, done.stdout + done.stderr
