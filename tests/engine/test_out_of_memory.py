import pytest
import torch

from xtuner_plugins.engine.out_of_memory import NO_MEMORY, OutOfMemory, name_sources, naming

PADDED = {
    "input_ids": torch.zeros(2, 5, dtype=torch.int64),
    "attention_mask": torch.tensor([[True] * 5, [True] * 2 + [False] * 3]),
    "num_tiles": torch.tensor([3, 1]),
    "sources": ["a.jsonl:1", "a.jsonl:9"],
}
PACKED = {**PADDED, "input_ids": torch.zeros(1, 7), "cu_seqlens": torch.tensor([0, 5, 7])}
del PACKED["attention_mask"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nmore"), RuntimeError(NO_MEMORY)])
@pytest.mark.parametrize("batch, setting", [(PADDED, "lower batch_size (and"), (PACKED, "lower pack_tokens")])
def test_the_batch_and_what_helps_are_named(error, batch, setting):
    with pytest.raises(OutOfMemory) as caught, naming([batch]):
        raise error
    message = str(caught.value)
    assert "2 samples of 7 tokens and 4 tiles, from the samples a.jsonl:1, a.jsonl:9 (" in message
    assert setting in message and "gradient_checkpointing" in message and "\n" not in message


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), naming([PADDED]):
        raise RuntimeError("shapes")


def test_many_sources():
    assert name_sources([f"a:{row}" for row in range(11)]).endswith("a:7 and 3 more")
    assert name_sources([]) == "(none named)"
