"""From the dataset to the loss: a pack gives what its samples give one by one, in loss and gradients."""

import pytest
import torch

from xtuner_plugins.datasets import MultimodalDataset, collate, collate_packed


@pytest.fixture
def samples(toy_base, write_data, make_image, qa):
    for name, size in {"a.png": (100, 90), "b.png": (360, 120)}.items():
        folder = make_image(name, *size)
    records = [qa("A?", "Yes.", image="a.png"), qa("B?", "It is not so, I think.", image="b.png"), qa("C?", "No.")]
    dataset = MultimodalDataset(str(toy_base), write_data(records), folder)
    return [dataset[index] for index in range(3)]


def loss_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    loss = model(**model.data_preprocessor(batch, True), mode="loss")["loss"]
    loss.backward()
    return loss.detach(), {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("pad_to", [0, 900])
def test_packed_equals_unpacked(toy_base, samples, pad_to):
    from xtuner_plugins.models.vlm import VisionLanguageModel

    torch.manual_seed(0)
    model = VisionLanguageModel(base=str(toy_base), freeze_llm=False, dtype="float32")
    expected, wanted = loss_and_gradients(model, collate(samples))
    loss, gradients = loss_and_gradients(model, collate_packed(samples, pad_to=pad_to))
    # both sum the same numbers in another order: float32 noise only
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted.keys() and len(wanted) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
