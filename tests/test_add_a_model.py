"""The page on adding a model, followed: its row makes a language model that trains, exports and answers the same."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from tests.weights.language_models import SIZES
from tests.weights.training import chat_inputs, logits, make_model, save_pth, training_inputs
from xtuner_plugins import families
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.reading import read_json

DOCS = Path(__file__).resolve().parents[1] / "docs"


def row_of(page):
    block = re.search(r"```python\n(\s*LLMFamily\(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    return eval(f"(\n{block}\n)", vars(families))


@pytest.fixture
def row(monkeypatch):
    row = row_of(DOCS / "add_a_model.md")
    assert row.model_type not in families.LLM_FAMILIES, "choose a model for the page that has no row yet"
    monkeypatch.setitem(families.LLM_FAMILIES, row.model_type, row)
    return row


def write_llm(folder, tokenizer_dir):
    """A random SmolLM3 with the toy tokenizer; its fourth layer has no rotary embedding."""
    shutil.copytree(tokenizer_dir, folder)
    (folder / "model.safetensors").unlink()
    ids = {k: read_json(tokenizer_dir / "config.json")[k] for k in ("vocab_size", "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 4, "tie_word_embeddings": True}  # tied as the published model
    SmolLM3ForCausalLM(SmolLM3Config(**sizes, **ids, pad_token_id=0)).save_pretrained(folder)
    return folder


def test_the_row_of_the_page_trains_and_exports(row, tmp_path):
    vision, tokenizer_dir = write_random_parts(tmp_path / "parts")
    llm = write_llm(tmp_path / "llm", tokenizer_dir)
    build_base(vision, llm, tmp_path / "base", dtype="float32")
    inside = read_json(tmp_path / "base" / "config.json")["llm_config"]
    assert inside["no_rope_layers"] == [1, 1, 1, 0] and set(row.fields) <= set(inside)

    # alone: the language model without images, as transformers runs it
    base = load_model(tmp_path / "base", dtype=None)
    alone = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    ids = torch.randint(0, 800, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = base.language_model(input_ids=ids).logits[..., :800] - alone(input_ids=ids).logits[..., :800]
    assert gap.abs().max() <= 1e-5  # float32, the same operations

    model = make_model(tmp_path / "base", llm_lora=dict(type=LoraConfig, r=4, lora_alpha=8))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in trained if "lora_B" in name} == set(row.lora_targets)
    pixels, ids, _ = inputs = chat_inputs(model.model)
    loss, expected = model(**training_inputs(model, ids, pixels), mode="loss")["loss"], logits(model.model, inputs)
    # the loss is that of the logits: nothing scales or caps them behind the head
    assert abs(loss.item() - torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:]).item()) <= 1e-5
    loss.backward()
    assert [name for name, p in trained.items() if p.grad is None] == []

    export(None, save_pth(model, tmp_path / "iter_2.pth"), tmp_path / "out")
    exported = load_model(tmp_path / "out", dtype=None)
    assert (logits(exported, inputs) - expected).abs().max() <= 1e-5  # merging an adapter in float32
    assert (logits(base, inputs) - expected).abs().max() > 1e-2
