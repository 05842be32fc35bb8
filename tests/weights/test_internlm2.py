"""InternLM2 inside an official directory: it runs as Llama and stays itself, or is written as Llama; Qwen as Qwen2."""

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.toy_bases import as_internlm2
from tests.weights.language_models import write_llm
from tests.weights.test_hf import hf_logits
from tests.weights.training import LORA, chat_inputs, load_trained, logits, make_model, save_pth
from tests.weights.vocabularies import write_internlm2
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.model_view import open_language_model
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json


def test_a_published_directory_is_trained_and_stays_what_it_is(toy_parts, tmp_path):
    """Without tokenizer.json and with its own code, as releases are; without that code it isn't written."""
    llm = write_llm("internlm2", tmp_path / "llm", toy_parts[1], own_vocabulary=True)
    build_base(toy_parts[0], llm, tmp_path / "llama", template="internlm2-chat", dtype="float32")
    base, out = as_internlm2(tmp_path / "llama", tmp_path / "base"), tmp_path / "out"
    for path in [*base.glob("*token*")]:
        path.unlink()
    write_internlm2(base, image_tokens=ADDED_TOKENS, model=(llm / "tokenizer.model").read_bytes())
    prompt = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n你好 2 cats<|im_end|><|im_start|>assistant\n"

    settings = dict(llm_lora={**LORA, "type": LoraConfig, "target_modules": ["q_proj", "o_proj", "up_proj"]})
    trained = make_model(base, **settings)
    checkpoint, inputs = save_pth(trained, tmp_path / "iter_1.pth"), chat_inputs(trained.model)
    export(None, checkpoint, out)
    old, new = (load_file(each / "model.safetensors") for each in (base, out))
    assert old.keys() == new.keys() and all(old[k].shape == new[k].shape for k in old)
    changed = {k.split("layers.0.")[1] for k in old if not torch.equal(old[k], new[k]) and "model.layers.0." in k}
    assert changed == {"attention.wqkv.weight", "attention.wo.weight", "feed_forward.w3.weight"}
    assert read_json(out / "config.json") == read_json(base / "config.json")
    assert (out / "modeling_internlm2.py").read_text() == "# the release's own code\n"
    assert (out / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    written = read_json(out / "tokenizer_config.json")
    assert written.pop("chat_template") and written == read_json(base / "tokenizer_config.json")
    for model in (load_model(out, dtype=None), load_trained(None, checkpoint, dtype=None)):
        assert (logits(model, inputs) - logits(trained.model, inputs)).abs().max() <= 1e-5
    export(None, checkpoint, tmp_path / "hf", format="hf")
    assert (hf_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)).abs().max() <= 1e-5
    ids = [load_tokenizer(tmp_path / name)(prompt).input_ids for name in ("llama", "base", "hf")]
    assert ids[0] == ids[1] == ids[2] and ids[0][0] == 1 and trained.model.img_context_token_id in ids[0]

    fields = read_json(base / "config.json")
    write_json(base / "config.json", {k: v for k, v in fields.items() if k != "auto_map"})
    checkpoint = save_pth(trained, tmp_path / "iter_2.pth")
    for words in (r"without the code that runs it \(auto_map\)", r"\(modeling_internlm2.py\); download it"):
        with pytest.raises(CheckpointError, match=words):
            export(None, checkpoint, tmp_path / "none")
        (base / "modeling_internlm2.py").unlink(missing_ok=True)
    assert not (tmp_path / "none").exists()


def test_qwen(toy_parts, tmp_path):
    """A published directory opens without the buffers that old releases stored."""
    folder = write_llm("qwen", tmp_path / "llm", toy_parts[1])
    held = load_file(folder / "model.safetensors")
    save_file({**held, "transformer.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    config, tensors = open_language_model(folder)
    with init_empty_weights():
        model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.items() if k != "architectures"}))
    assert {k: t.shape for k, t in tensors.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    expected = {"rope_theta": 10000.0, "max_position_embeddings": 512, "use_sliding_window": False}
    assert config.items() >= expected.items() and config["model_type"] == "qwen2"
    gate = tensors["model.layers.0.mlp.gate_proj.weight"].read()
    assert torch.equal(gate, held["transformer.h.0.mlp.w2.weight"])
