"""Every language model family inside every tower style: assembled, loaded, exported, through the hf format and back."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.weights.language_models import write_llm
from tests.weights.training import LORA, chat_inputs, logits, make_model, save_pth
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import read_json

RMS_TOWER = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)  # of the 6B, in every second case
ALONE = ("qwen3", "qwen3_moe", "llama", "mistral", "phi3")  # what transformers opens without its official directory
CASES = [*((family, False) for family in (*ALONE, "internlm2", "qwen")), ("internlm2", True), ("qwen", True)]


@pytest.mark.parametrize("family, own_vocabulary", CASES)
def test_family(family, own_vocabulary, tmp_path):
    tower = RMS_TOWER if CASES.index((family, own_vocabulary)) % 2 else {}
    vision, tokenizer_dir = write_random_parts(tmp_path / "parts", vision_overrides=tower)
    llm = write_llm(family, tmp_path / "llm", tokenizer_dir, own_vocabulary=own_vocabulary)
    build_base(vision, llm, tmp_path / "base", template="internvl2_5", dtype="float32")
    inside = read_json(tmp_path / "base" / "config.json")["llm_config"]
    assert inside["model_type"] == {"internlm2": "llama", "qwen": "qwen2"}.get(family, family)
    if family == "internlm2":
        assert inside["rope_scaling"] == {"type": "dynamic", "factor": 2.0}  # a third key stops transformers 4.37
    if family in ALONE:  # the language model says what it said alone
        padded, used = read_json(llm / "config.json")["vocab_size"], len(load_tokenizer(tmp_path / "base"))
        assert padded > used and inside["vocab_size"] == (padded if family.startswith("qwen3") else used)
        alone = AutoModelForCausalLM.from_pretrained(llm, torch_dtype=torch.float32).eval()
        inner, ids = load_model(tmp_path / "base", dtype=None).language_model, torch.randint(0, 800, (1, 9))
        with torch.no_grad():
            gap = inner(input_ids=ids).logits[..., :800] - alone(input_ids=ids).logits[..., :800]
        assert gap.abs().max() <= 1e-5

    targets = ["qkv_proj" if family == "phi3" else "q_proj", "down_proj"]
    trained = make_model(tmp_path / "base", llm_lora={**LORA, "target_modules": targets})
    export(None, save_pth(trained, tmp_path / "iter_1.pth"), tmp_path / "out")
    exported, inputs = load_model(tmp_path / "out", dtype=None), chat_inputs(trained.model)
    assert (logits(exported, inputs) - logits(trained.model, inputs)).abs().max() <= 1e-5

    convert(tmp_path / "out", tmp_path / "hf", format="hf")
    convert(tmp_path / "hf", tmp_path / "back", format="official")
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n你好 2 cats<|im_end|>"
    ids = [load_tokenizer(tmp_path / name)(text).input_ids for name in ("base", "hf", "back")]
    assert ids[0] == ids[1] == ids[2]
    if own_vocabulary:
        before = load_tokenizer(llm, complete=False)
        assert ids[0][:2] == before("<|im_start|>user").input_ids[:2] and inside["vocab_size"] == len(before) + 9
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "back"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
