"""What libraries say about themselves stays out of the terminal; what they say about the user's run doesn't."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

IMPORTS = "import logging, deepspeed, bitsandbytes\nlogging.getLogger('DeepSpeed').warning('about the run')"


@pytest.mark.parametrize("first", ["from xtuner_plugins.processes import quiet_imports; quiet_imports()\n", ""])
def test_imports_are_quiet(first):
    env = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", first + IMPORTS], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line]
    assert warnings[-1].endswith("about the run") and (len(warnings) == 1) == bool(first)


def test_in_a_notebook_tqdm_does_not_miss_its_widgets():
    """As it does where IPython runs and ipywidgets isn't installed; other warnings stay."""
    warn = "import warnings; warnings.warn('IProgress not found. Please update'); warnings.warn('about the run')"
    code = f"from xtuner_plugins.processes import quiet_imports; quiet_imports(); {warn}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "about the run" in done.stderr and "IProgress" not in done.stderr


def test_a_choice_of_the_user_stays():
    code = "import os; from xtuner_plugins.processes import *; quiet_imports(); print(os.environ['DS_ACCELERATOR'])"
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "xpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "xpu", done.stderr


def test_bitsandbytes_asks_the_hub_for_no_kernel(tmp_path):
    """It would on a CPU with bfloat16 instructions, where the package `kernels` is installed."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **kwargs): print('asked')")
    quiet = "from xtuner_plugins.processes import quiet_imports; quiet_imports()"
    code = f"{quiet}; import bitsandbytes, transformers.modeling_utils"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "asked" not in done.stdout, done.stdout + done.stderr
