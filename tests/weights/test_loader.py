"""Loading: the same numbers as on disk, no code run, a report that names what is wrong."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.weights.loader import load_model, load_tokenizer, read_config
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json


def test_numbers_and_dtype(toy_base):
    held = load_file(toy_base / "model.safetensors")
    model = load_model(toy_base, dtype=None)
    state = model.state_dict()
    assert state.keys() == held.keys() and all(torch.equal(state[k], held[k]) for k in held)
    assert not model.training
    assert {p.dtype for p in load_model(toy_base, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_nothing_in_the_directory_runs(toy_base, tmp_path):
    evil = shutil.copytree(toy_base, tmp_path / "evil")
    for path in evil.glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    config = {**read_json(evil / "tokenizer_config.json"), "auto_map": {"AutoTokenizer": ["conversation.X", None]}}
    write_json(evil / "tokenizer_config.json", config)
    load_model(evil), load_tokenizer(evil)
    assert not (tmp_path / "owned").exists()


def test_report(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "bad")
    held = load_file(toy_base / "model.safetensors")
    held["extra.weight"] = torch.ones(1)
    held["mlp1.1.bias"] = torch.ones(5)
    del held["mlp1.3.bias"]
    save_file(held, tmp_path / "bad" / "model.safetensors")
    words = r"1 missing: mlp1.3.bias; 1 unexpected: extra.weight; .*mlp1.1.bias is \[5\], the model has \[64\]"
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "bad")


def test_wrong_directories(toy_parts, toy_base, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no config.json"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="not an official InternVL directory.*build_base_model"):
        load_model(toy_parts[1])
    with pytest.raises(CheckpointError, match="lacks <img>"):
        load_tokenizer(toy_parts[1])
    shutil.copytree(toy_base, tmp_path / "wrapped")
    write_json(tmp_path / "wrapped" / "config.json", {**read_json(toy_base / "config.json"), "use_llm_lora": 16})
    with pytest.raises(CheckpointError, match="use_llm_lora is 16"):
        read_config(tmp_path / "wrapped")
