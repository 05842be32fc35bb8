"""The quick masks are transformers' own, and they are taken only where a padded batch is answered."""

import pytest
import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.padding import PADDED, padded_mask, quick_masks

PADDINGS = {
    "left": [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]],
    "none": [[1, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("queries", [[5], [3, 4, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("rows", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("rule", [causal_mask_function, sliding_window_causal_mask_function(3)])
def test_masks_are_those_of_transformers(queries, rows, rule):
    mask, positions = torch.tensor(rows, dtype=torch.bool), torch.tensor(queries)
    options = {"mask_function": rule, "attention_mask": mask, "allow_is_causal_skip": True}
    expected, found = (make(len(rows), positions, 6, **options) for make in (sdpa_mask, padded_mask))
    assert (expected is None) == (found is None)
    if expected is not None:
        assert torch.equal(found, expected.expand_as(found)) and found.dtype == torch.bool


def test_without_a_mask():
    assert padded_mask(2, torch.arange(4), 4) is None


def test_a_batch_makes_its_masks_quickly_and_the_model_is_as_before(toy_base, monkeypatch):
    made = []
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping,
        PADDED,
        lambda *args, **options: made.append(options["batch_size"]) or padded_mask(*args, **options),
    )
    session = open_session(toy_base, device="cpu")
    session.answer([("Hello", []), ("Why is this one longer?", [])], batch_size=2, max_new_tokens=3)
    assert made == [2, 2, 2] and session.model.language_model.config._attn_implementation == "sdpa"


def test_other_attention_is_left_alone(toy_base):
    model = open_session(toy_base, device="cpu").model.language_model
    model.config._attn_implementation = "eager"
    with quick_masks(model):
        assert model.config._attn_implementation == "eager"
