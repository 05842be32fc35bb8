"""What an export holds besides the weights, and what it refuses."""

import json
import shutil

import pytest
import torch

from tests.checkpoints.training import make_model, save_pth, write_config
from xtuner_plugins.checkpoints.export import convert, export
from xtuner_plugins.checkpoints.formats.draft import ships_own_code
from xtuner_plugins.checkpoints.loader import load_model, load_tokenizer


def test_code_that_is_not_whole_is_replaced_by_ours(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "base")
    (tmp_path / "base" / "conversation.py").unlink()
    config = write_config(tmp_path / "c.py", tmp_path / "base")
    done = export(config, save_pth(make_model(toy_base), tmp_path / "iter_1.pth"), tmp_path / "out")
    assert "lacks conversation.py" in done["notes"][0] and (tmp_path / "out" / "conversation.py").is_file()


def test_an_earlier_version_of_our_code_is_replaced(toy_base, tmp_path):
    """It would prompt by the rules of its time, not by those of the training."""
    shutil.copytree(toy_base, tmp_path / "base")
    current = (tmp_path / "base" / "prompts.py").read_text()
    (tmp_path / "base" / "prompts.py").write_text("# of an earlier version\n")
    config = write_config(tmp_path / "c.py", tmp_path / "base")
    done = export(config, save_pth(make_model(toy_base), tmp_path / "iter_1.pth"), tmp_path / "out")
    assert "another version of this project's" in done["notes"][0]
    assert (tmp_path / "out" / "prompts.py").read_text() == current
    assert not ships_own_code(tmp_path / "base")


@pytest.mark.parametrize("named", [None, "<|endoftext|>", ["<|endoftext|>"]])
def test_chat_and_generate_stop_at_the_templates_token(toy_base, tmp_path, monkeypatch, named):
    """Also where the base has no generation config, or one with other tokens, as some official ones."""
    base, tokenizer = tmp_path / "base", load_tokenizer(toy_base)
    shutil.copytree(toy_base, base)
    (base / "generation_config.json").unlink()
    ids = named and tokenizer.convert_tokens_to_ids(named)
    if named:
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    convert(base, tmp_path / "out", format="official")

    model, _ = load_model(tmp_path / "out")
    seen = []

    def record(**kwargs):
        seen.append(kwargs["eos_token_id"])
        return torch.tensor([[5]])

    monkeypatch.setattr(model.language_model, "generate", record)
    model.chat(tokenizer, None, "Hello", {"do_sample": False})
    prompt = tokenizer("Hello", return_tensors="pt").input_ids
    model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt))
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert seen[0] == seen[1] == [stop, *(ids if isinstance(ids, list) else [ids] if named else [])]
