"""What only a GPU shows: bfloat16 beside float32 masters, and the same loss as on the CPU."""

import pytest
import torch
from peft import LoraConfig

from xtuner_plugins.models import VisionLanguageModel

from .test_vlm import make_batch, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_loss_equals_the_cpu_in_float32(toy_base, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    on_cpu = VisionLanguageModel(base=str(toy_base), dtype="float32").eval()
    on_gpu = VisionLanguageModel(base=str(toy_base), dtype="float32").eval().cuda()
    batch = make_batch(on_cpu)
    torch.testing.assert_close(run(on_gpu, batch)["loss"].cpu(), run(on_cpu, batch)["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantization", [None, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")])
def test_bfloat16_lora_learns(toy_base, quantization):
    lora = dict(type=LoraConfig, r=8, lora_alpha=16)
    model = VisionLanguageModel(base=str(toy_base), llm_lora=lora, llm_quantization=quantization).cuda().train()
    assert model.dtype == torch.bfloat16
    batch = make_batch(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(20):
        loss = run(model, batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
