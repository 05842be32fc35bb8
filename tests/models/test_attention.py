import pytest
import torch

from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.attention import check_boundaries, packed_causal_mask

from .test_vlm import make_batch, run


def test_mask_is_causal_inside_samples_and_closed_between_them():
    mask = packed_causal_mask(torch.tensor([0, 2, 5], dtype=torch.int32), 6)[0, 0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:2, :2] = torch.ones(2, 2).tril().bool()
    expected[2:5, 2:5] = torch.ones(3, 3).tril().bool()
    expected[5, 5] = True  # padding sees itself
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("bounds, rows", [([1, 3], 1), ([0, 3, 3], 1), ([0, 9], 1), ([0, 4], 2)])
def test_impossible_boundaries_are_refused(bounds, rows):
    with pytest.raises(ValueError, match="boundaries"):
        check_boundaries(torch.tensor(bounds), rows, 6)


def pack(batch):
    """The samples of a padded batch behind each other in one row, with two tokens of padding at the end."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = range(len(lengths))
    joined = {key: torch.cat([batch[key][row, : lengths[row]] for row in rows]) for key in ("input_ids", "labels")}
    ends = torch.tensor(lengths).cumsum(0)
    return {
        "input_ids": torch.nn.functional.pad(joined["input_ids"], (0, 2))[None],
        "labels": torch.nn.functional.pad(joined["labels"], (0, 2), value=-100)[None],
        "position_ids": torch.cat([torch.arange(n) for n in [*lengths, 2]])[None],
        "cu_seqlens": torch.cat([torch.zeros(1), ends]).int(),
        "tiles": batch["tiles"],
        "num_tiles": batch["num_tiles"],
        "sources": batch["sources"],
    }


def test_packed_equals_unpacked_in_loss_and_gradients(toy_base):
    results = []
    for transform in (lambda batch: batch, pack):
        torch.manual_seed(0)
        model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False, freeze_visual_encoder=False)
        loss = run(model.train(), transform(make_batch(model, tiles_of=(2, 0, 1, 3))))["loss"]
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (loss, gradients), (packed_loss, packed_gradients) = results
    torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=0, msg=name)


def test_without_boundaries_a_pack_would_differ(toy_base):
    """The check above can fail: letting samples see each other changes the loss."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").eval()
    packed = pack(make_batch(model, tiles_of=(2, 0, 1, 3)))
    right = run(model, packed)["loss"]
    wrong = run(model, {**packed, "cu_seqlens": torch.tensor([0, int(packed["cu_seqlens"][-1])]).int()})["loss"]
    assert abs(right - wrong) > 1e-3


def test_a_pack_names_the_sample_at_fault(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").eval()
    packed = pack(make_batch(model, tiles_of=(1, 0, 2)))
    packed["input_ids"][0, int(packed["cu_seqlens"][2]) + 3] = 11
    with pytest.raises(ValueError, match=r"at fault: data.jsonl:3$"):
        run(model, packed)


def test_weights_of_samples_mean_the_same_packed_and_unpacked(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").eval()
    batch = {**make_batch(model, tiles_of=(1, 0, 2)), "loss_weights": torch.tensor([1.0, 4.0, 0.5])}
    packed = {**pack(batch), "loss_weights": batch["loss_weights"]}
    loss = run(model, batch)["loss"]
    torch.testing.assert_close(run(model, packed)["loss"], loss, atol=1e-5, rtol=0)
    assert abs(loss - run(model, make_batch(model, tiles_of=(1, 0, 2)))["loss"]) > 1e-4
