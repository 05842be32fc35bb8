"""What only a GPU shows: bfloat16 beside float32 masters, and the same loss as on the CPU."""

import pytest
import torch

from xtuner_plugins.models import loss_head

from .batches import LORA, build, learn, make_batch, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_loss_equals_the_cpu_in_float32(toy_base, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    on_cpu, on_gpu = build(toy_base).eval(), build(toy_base).eval().cuda()
    batch = make_batch(on_cpu)
    torch.testing.assert_close(run(on_gpu, batch)["loss"].cpu(), run(on_cpu, batch)["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantization", [None, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")])
def test_bfloat16_lora_learns(toy_base, quantization):
    model = build(toy_base, dtype="auto", llm_lora=LORA | dict(r=8), llm_quantization=quantization).cuda()
    assert model.dtype == torch.bfloat16
    losses = learn(model, make_batch(model), 20, torch.optim.AdamW, lr=1e-3)
    assert losses[-1] < 0.8 * losses[0]


def test_the_gradient_of_a_head_is_added_up_over_chunks(monkeypatch):
    """Several chunks with padded rows, against float32 products of the same rounded numbers on the CPU."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64).bfloat16(), torch.randn(1003, 64).bfloat16()
    targets, weights = torch.randint(1003, (300,)), torch.rand(300)
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        if device == "cuda":
            monkeypatch.setattr(loss_head, "CHUNK_LOGITS", 128 * 1024)
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in (hidden, weight)]
        loss, _ = loss_head.head_loss(*leaves, targets.to(device), weights.to(device))
        loss.backward()
        found.append([tensor.float().cpu() for tensor in (loss.detach(), *(leaf.grad for leaf in leaves))])
    # Logits and their gradient are rounded to 8 bits: 0.9 % where the CPU computes the same chunks.
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < 2e-2 * expected.norm()
