"""Rows of single tokens (PEFT's ``trainable_token_indices``): what PEFT merges to the bit, however they arrive."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.weights.training import (
    LORA,
    chat_inputs,
    load_trained,
    logits,
    make_model,
    save_pth,
    training_inputs,
    write_config,
)
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import export
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights import token_rows
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.loader import load_model, load_tokenizer
from xtuner_plugins.weights.reading import CheckpointError

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
ROWS = [3, 500, 7, 505]
CHOICES = {
    "embedding": ROWS,
    "both": {"embed_tokens": ROWS, "lm_head": [1, 2]},
    "named": {"model.embed_tokens": ROWS},
}


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    """The toy base in bfloat16, as real ones are."""
    folder = tmp_path_factory.mktemp("bf16")
    build_base(*write_random_parts(folder / "parts"), folder / "base")
    return folder / "base"


@pytest.mark.parametrize("choice", ["embedding", "both"])
def test_trained_here(choice, toy_base, tmp_path):
    """From a training checkpoint: exported, loaded merged and live, and as an adapter again."""
    settings = dict(llm_lora={**LORA, "trainable_token_indices": CHOICES[choice]})
    trained = make_model(toy_base, **settings)
    names = [name for name, p in trained.named_parameters() if p.requires_grad and "trainable_tokens_delta" in name]
    assert len(names) == (2 if choice == "both" else 1) and set(names) <= set(trained.state_dict())
    config, checkpoint = (
        write_config(tmp_path / "c.py", toy_base, **settings),
        save_pth(trained, tmp_path / "iter_1.pth"),
    )
    export(config, checkpoint, tmp_path / "out")
    pixels, ids, flags = chat_inputs(trained.model)
    ids[0, :4] = torch.tensor(ROWS)
    inputs = pixels, ids, flags
    expected = logits(trained.model, inputs)
    models = [load_model(tmp_path / "out", dtype=None)[0]]
    models += [load_trained(config, checkpoint, dtype=None, merge_lora=merge) for merge in (True, False)]
    for model in models:
        model.img_context_token_id = trained.model.img_context_token_id
        assert (logits(model, inputs) - expected).abs().max() <= 1e-5
    base = load_file(toy_base / "model.safetensors")
    plain, _ = load_model(toy_base, dtype=None)
    plain.img_context_token_id = trained.model.img_context_token_id
    assert (logits(plain, inputs) - expected).abs().max() > 1e-2
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        held[EMBEDDING][ROWS],
        trained.state_dict()["model." + EMBEDDING.replace(".weight", ".token_adapter.trainable_tokens_delta.default")],
    )
    assert ((held[EMBEDDING] != base[EMBEDDING]).any(1).nonzero().flatten().tolist()) == sorted(ROWS)

    export_adapter(config, checkpoint, tmp_path / "adapter")
    export(config, tmp_path / "adapter", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], held[name]) for name in held)
    plain.load_state_dict(load_file(tmp_path / "adapter/replaced.safetensors"), strict=False)
    PeftModel.from_pretrained(plain.language_model, tmp_path / "adapter/language_model")
    assert (logits(plain.eval(), inputs) - expected).abs().max() <= 1e-5


def test_gradients_reach_the_rows(toy_base):
    """A training step changes exactly the rows that the batch holds."""
    context = load_tokenizer(toy_base).convert_tokens_to_ids("<IMG_CONTEXT>")
    trained = make_model(toy_base, llm_lora={**LORA, "trainable_token_indices": ROWS}).train()
    ids = torch.tensor([[3, 7, 9, 11]])
    assert context not in ids
    trained(**training_inputs(trained, ids), mode="loss")["loss"].backward()
    (gradient,) = [p.grad for name, p in trained.named_parameters() if "trainable_tokens_delta" in name]
    assert (gradient != 0).any(1).tolist() == [True, False, True, False]


class TestRefusals:
    def check(self, toy_base, tmp_path, pattern, trained, **settings):
        checkpoint = save_pth(make_model(toy_base, llm_lora={**LORA, **trained}), tmp_path / "iter_1.pth")
        config = write_config(tmp_path / "c.py", toy_base, llm_lora={**LORA, **settings})
        with pytest.raises(CheckpointError, match=pattern):
            export(config, checkpoint, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_config_without(self, toy_base, tmp_path):
        self.check(toy_base, tmp_path, "the LoRA settings name none", {"trainable_token_indices": ROWS})

    def test_checkpoint_without(self, toy_base, tmp_path):
        self.check(toy_base, tmp_path, "holds none of them", {}, trainable_token_indices=ROWS)

    def test_other_rows(self, toy_base, tmp_path):
        trained = {"trainable_token_indices": ROWS}
        self.check(
            toy_base, tmp_path, r"the trained rows are \[4, 64\], but 2", trained, trainable_token_indices=[1, 2]
        )

    @pytest.mark.parametrize("rows", [[1, 2, 3, 99999], [1, 2, 3, -1], [1, 2, 3, 3]])
    def test_impossible_rows(self, rows, toy_base, tmp_path):
        trained = {"trainable_token_indices": ROWS}
        self.check(toy_base, tmp_path, "are not different rows of", trained, trainable_token_indices=rows)


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_blocks(rows):
    """Whatever block is read, and the matrix itself is left as it was."""
    matrix = torch.arange(22.0).view(11, 2).bfloat16()
    trained = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    result = token_rows.laid(MemoryTensor(matrix), MemoryTensor(trained), [9, 0], "m")
    held = torch.cat([result.rows(n, min(n + rows, 11)).read() for n in range(0, 11, rows)])
    expected = matrix.float()
    expected[[9, 0]] = trained
    assert torch.equal(held, expected) and matrix[9, 0] == 18
