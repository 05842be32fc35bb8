"""InternLM2 inside an official directory: it runs as Llama and stays itself, or is written as Llama."""

import shutil

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file

from tests.toy_bases import as_internlm2
from tests.weights.language_models import write_llm
from tests.weights.test_hf import hf_logits
from tests.weights.training import (
    LORA,
    chat_inputs,
    load_trained,
    logits,
    make_model,
    save_pth,
    with_context,
    write_config,
)
from tests.weights.vocabularies import write_internlm2
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json


@pytest.fixture(scope="module")
def internlm2_base(tmp_path_factory, toy_base):
    """The toy base as InternLM2."""
    return as_internlm2(toy_base, tmp_path_factory.mktemp("internlm2") / "base")


def test_internlm2_stays_internlm2(internlm2_base, tmp_path):
    settings = dict(llm_lora={**LORA, "type": LoraConfig, "target_modules": ["q_proj", "o_proj", "up_proj"]})
    trained = make_model(internlm2_base, **settings)
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    config = write_config(tmp_path / "c.py", internlm2_base, **settings)
    export(config, checkpoint, tmp_path / "out")
    base, out = load_file(internlm2_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert base.keys() == out.keys() and all(base[k].shape == out[k].shape for k in base)
    changed = {k.split("layers.0.")[1] for k in base if not torch.equal(base[k], out[k]) and "model.layers.0." in k}
    assert changed == {"attention.wqkv.weight", "attention.wo.weight", "feed_forward.w3.weight"}
    assert read_json(tmp_path / "out" / "config.json") == read_json(internlm2_base / "config.json")
    assert (tmp_path / "out" / "modeling_internlm2.py").read_text() == "# the release's own code\n"
    inputs = chat_inputs(trained.model)
    for model in (load_model(tmp_path / "out", dtype=None), load_trained(config, checkpoint, dtype=None)):
        gap = logits(with_context(model, trained.model), inputs) - logits(trained.model, inputs)
        assert gap.abs().max() <= 1e-5
    export(config, checkpoint, tmp_path / "hf", format="hf")
    assert (hf_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)).abs().max() <= 1e-5


def test_internlm2_with_its_own_vocabulary(toy_parts, tmp_path):
    """A directory as published, without tokenizer.json: trained, exported as itself, and in hf."""
    from transformers import AutoProcessor

    llm = write_llm("internlm2", tmp_path / "llm", toy_parts[1], own_vocabulary=True)
    build_base(toy_parts[0], llm, tmp_path / "assembled", template="internlm2-chat", dtype="float32")
    base = as_internlm2(tmp_path / "assembled", tmp_path / "base")
    for path in [*base.glob("*token*")]:
        path.unlink()
    write_internlm2(base, image_tokens=ADDED_TOKENS, model=(llm / "tokenizer.model").read_bytes())
    prompt = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n你好 2 cats<|im_end|><|im_start|>assistant\n"
    expected = load_tokenizer(tmp_path / "assembled")(prompt).input_ids
    assert load_tokenizer(base)(prompt).input_ids == expected and expected[0] == 1

    trained = make_model(base, llm_lora=LORA)
    assert trained.model.img_context_token_id == load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
    checkpoint, config = (
        save_pth(trained, tmp_path / "iter_1.pth"),
        write_config(tmp_path / "c.py", base, llm_lora=LORA),
    )
    export(config, checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    written = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert written.pop("chat_template") and written == read_json(base / "tokenizer_config.json")
    export(config, checkpoint, tmp_path / "hf", format="hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    image = Image.new("RGB", (336, 224), "red")
    batch = processor(text=prompt, images=[image], return_tensors="pt")
    context = read_json(tmp_path / "hf" / "config.json")["image_token_id"]
    at = expected.index(context)
    # the processor writes <img> and </img> around its tokens itself
    ids = [token for token in batch["input_ids"][0].tolist() if token != context]
    assert ids[:at] == expected[:at] and ids[-8:] == expected[-8:]
    inputs = chat_inputs(trained.model)
    assert (hf_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)).abs().max() <= 1e-5


def test_internlm2_without_its_code_is_refused(internlm2_base, tmp_path):
    base = shutil.copytree(internlm2_base, tmp_path / "base")
    fields = read_json(internlm2_base / "config.json")
    write_json(base / "config.json", {k: v for k, v in fields.items() if k != "auto_map"})
    checkpoint = save_pth(make_model(base), tmp_path / "iter_1.pth")
    for words in (r"without the code that runs it \(auto_map\)", r"\(modeling_internlm2.py\); download it"):
        with pytest.raises(CheckpointError, match=words):
            export(None, checkpoint, tmp_path / "out")
        (base / "modeling_internlm2.py").unlink(missing_ok=True)
    assert not (tmp_path / "out").exists()
