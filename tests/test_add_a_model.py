"""The page on adding a model, followed: its row makes a language model that trains, exports and answers the same."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from tests.weights.language_models import SIZES
from tests.weights.training import chat_inputs, logits, save_pth, training_inputs, write_config
from xtuner_plugins import families
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.models.vlm import VisionLanguageModel
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

    settings = dict(llm_lora=dict(type=LoraConfig, r=4, lora_alpha=8))
    model = VisionLanguageModel(base=str(tmp_path / "base"), dtype="float32", **settings).train()
    adapted = {name.split(".")[-4] for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad}
    assert adapted == set(row.lora_targets)

    inputs = chat_inputs(model.model)
    before = logits(model.model.eval(), inputs)
    pixels, ids, _ = inputs
    batch, losses = training_inputs(model, ids, pixels), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # LoRA's B starts at zero, so A gets its first gradient in the second step
        losses.append(model.train()(**batch, mode="loss")["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
    assert losses[1] < losses[0]

    after = logits(model.model.eval(), inputs)
    # the loss is that of the logits: nothing scales or caps them behind the head
    expected = torch.nn.functional.cross_entropy(after[0, :-1], ids[0, 1:])
    with torch.no_grad():
        assert abs(float(model(**batch, mode="loss")["loss"]) - float(expected)) <= 1e-5

    config = write_config(tmp_path / "c.py", tmp_path / "base", **settings)
    export(config, save_pth(model, tmp_path / "iter_2.pth", config), tmp_path / "out")
    exported = load_model(tmp_path / "out", dtype=None)
    exported.img_context_token_id = model.model.img_context_token_id
    assert (logits(exported, inputs) - after).abs().max() <= 1e-5  # merging an adapter in float32
    assert (after - before).abs().max() > 1e-2
