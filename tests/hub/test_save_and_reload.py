"""`save_pretrained` and a reload as users do them: fresh processes, nothing copied by hand, the export gone.

Releases differ in the code files that they write beside the weights; 4.49 leaves out the model's file if its class has
no `_auto_class`.
"""

import json
import os
import shutil
import subprocess

import pytest

from tests.conftest import HANGS_AFTER

from .test_versions import environment, version_in

pytestmark = [pytest.mark.release, pytest.mark.xdist_group("releases of transformers")]

RELEASE = "4.49.0"
SAVE = """
import sys
from transformers import AutoModel, AutoTokenizer
export, out = sys.argv[1:]
AutoModel.from_pretrained(export, trust_remote_code=True).save_pretrained(out)
AutoTokenizer.from_pretrained(export, trust_remote_code=True).save_pretrained(out)
"""
ANSWER = """
import json, sys, torch, transformers
from transformers import AutoModel, AutoTokenizer
model, info = AutoModel.from_pretrained(
    sys.argv[1], torch_dtype=torch.float32, trust_remote_code=True, output_loading_info=True
)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
side = model.config.force_image_size
tiles = torch.sin(torch.arange(3 * 3 * side * side) * 0.37).reshape(3, 3, side, side)
options = {"max_new_tokens": 12, "do_sample": False}
questions = [(tiles, "Which number is it?"), (None, "Hi")]
answers = [model.eval().chat(tokenizer, pixels, question, options) for pixels, question in questions]
print(json.dumps({"answers": answers, "transformers": transformers.__version__}))
"""


def run(python, folder, script, *words):
    """What a script prints, run in a folder of its own with a cache of modules of its own."""
    folder.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    env |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-c", script, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_what_is_saved_opens_elsewhere(toy_base, tmp_path):
    python = environment(RELEASE)
    assert version_in(python)[0] == RELEASE
    export, saved = tmp_path / "export", tmp_path / "saved"
    shutil.copytree(toy_base, export)
    expected = json.loads(run(python, tmp_path / "first", ANSWER, export))
    run(python, tmp_path / "second", SAVE, export, saved)
    shutil.rmtree(export)
    shutil.move(saved, tmp_path / "elsewhere")
    found = json.loads(run(python, tmp_path / "third", ANSWER, tmp_path / "elsewhere"))
    assert found == expected and found["transformers"] == RELEASE and all(found["answers"])
