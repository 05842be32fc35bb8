"""What an export holds besides the weights, and what it refuses."""

import json
import shutil

import pytest
import torch

from tests.weights.training import make_model, save_pth
from xtuner_plugins.export.draft import hub_code
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.official import AUTO_MAP


def test_our_code_ships_whatever_lies_in_the_base(toy_base, tmp_path):
    """An earlier version of it would prompt by the rules of its time, and foreign code would run on servers."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    (base / "conversation.py").unlink()
    (base / "prompts.py").write_text("# of an earlier version\n")
    (base / "extra.py").write_text("raise RuntimeError\n")
    fields = json.loads((base / "config.json").read_text())
    fields["auto_map"] = {"AutoModel": "someone/else--extra.Model"}
    (base / "config.json").write_text(json.dumps(fields))
    export(None, save_pth(make_model(base), tmp_path / "iter_1.pth"), tmp_path / "out")
    shipped = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.py")}
    assert shipped == {path.name: path.read_text() for path in hub_code()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == AUTO_MAP


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

    model = load_model(tmp_path / "out")
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
