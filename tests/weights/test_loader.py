"""Loading: the same numbers as on disk, no code run, complete configs, a report that names what is wrong."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.weights import official
from xtuner_plugins.weights.loader import load_model, load_tokenizer, read_config
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json


def test_numbers_and_dtype(toy_base, tmp_path):
    """Nothing in the directory runs."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    for path in base.glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    fields = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", fields | {"auto_map": {"AutoTokenizer": ["conversation.X", None]}})
    held, model = load_file(base / "model.safetensors"), load_model(base, dtype=None)
    state = model.state_dict()
    assert state.keys() == held.keys() and all(torch.equal(state[k], held[k]) for k in held)
    assert not model.training and not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert {p.dtype for p in load_model(base).parameters()} == {torch.bfloat16}
    load_tokenizer(base)
    assert not (tmp_path / "owned").exists()


def test_what_does_not_fit(toy_parts, toy_base, tmp_path):
    bad = shutil.copytree(toy_base, tmp_path / "bad")
    held = load_file(bad / "model.safetensors")
    del held["mlp1.3.bias"]
    odd = {"extra.weight": torch.ones(1), "mlp1.1.bias": torch.ones(5)}
    save_file({**held, **odd}, bad / "model.safetensors")
    wrapped = shutil.copytree(toy_base, tmp_path / "wrapped")
    write_json(wrapped / "config.json", {**read_json(toy_base / "config.json"), "use_llm_lora": 16})
    shape = r".*mlp1.1.bias is \[5\], the model has \[64\]"
    for call, path, words in (
        (load_model, bad, f"1 missing: mlp1.3.bias; 1 unexpected: extra.weight; {shape}"),
        (read_config, tmp_path / "nowhere", "does not exist"),
        (read_config, tmp_path, "has no config.json"),
        (read_config, wrapped, "use_llm_lora is 16"),
        (load_model, toy_parts[1], "not an official InternVL directory.*build_base_model"),
        (load_tokenizer, toy_parts[1], "lacks <img>"),
    ):
        with pytest.raises(CheckpointError, match=words):
            call(path)
    names = {f"language_model.model.layers.{n}.x.lora_A.weight": torch.ones(1) for n in range(5)}
    save_file({**load_file(toy_base / "model.safetensors"), **names}, bad / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="5 unexpected: .*layers.3.x.lora_A.weight, ...; these are unmerged adapt"
    ):
        load_model(bad)


def test_missing_fields_mean_what_the_config_class_says():
    complete = official.read_config({"vision_config": {"image_size": 448}, "llm_config": {"model_type": "qwen2"}}, ".")
    expected = dict(ps_version="v1", downsample_ratio=0.5, select_layer=-1, force_image_size=448, max_dynamic_patch=6)
    assert complete.items() >= {**expected, "llm_config": {"model_type": "qwen2"}}.items()
    assert complete["vision_config"]["hidden_size"] == 3200 and official.keys(complete) is None
    llm = {"model_type": "internlm2", "bias": False, "num_attention_heads": 4}
    assert official.read_config({"vision_config": {}, "llm_config": llm}, ".")["llm_config"]["model_type"] == "llama"
    limits = {"dynamic_image_size": False, "min_dynamic_patch": 3, "max_dynamic_patch": 12}
    assert official.tile_limits(limits) == (1, 1)
    assert official.tile_limits({**limits, "dynamic_image_size": True}) == (3, 12)


def test_made_configs():
    vision, llm = {"image_size": 112, "patch_size": 14}, {"model_type": "phi3", "hidden_size": 64, "dtype": "float16"}
    own = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    for most in (1, 12):
        made = official.make_config(vision, llm, dtype="bfloat16", max_tiles=most)
        expected = {"template": "phi3-chat", "use_thumbnail": True, "image_fold": None, "tie_word_embeddings": False}
        expected["llm_config"] = {"model_type": "phi3", "hidden_size": 64, **own}
        assert official.detect(made) and "projector_type" not in made and made.items() >= expected.items()
        assert official.tile_limits(made) == (1, most) and official.num_image_tokens(made) == 16
        plain = official.make_config(vision, llm, dtype="bfloat16", max_tiles=most, projector_type="mlp")
        assert (plain["projector_type"], plain["use_thumbnail"]) == ("mlp", most > 1)
        assert official.num_image_tokens(plain) == 64
