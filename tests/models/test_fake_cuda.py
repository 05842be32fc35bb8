"""Which kernels a GPU gets, at true width: attention without masks, aligned products, and no wait for the device."""

import itertools

import pytest
import torch
from peft import LoraConfig

from xtuner_plugins.models.attention import _flash_runs

from .fake_cuda import FAMILIES, LAYERS, SAMPLES, build, fake_cuda, run_forward

LORA = dict(type=LoraConfig, r=16, lora_alpha=32, lora_dropout=0.05)
STAGES = {
    "full": dict(freeze_llm=False),
    "lora": dict(llm_lora=LORA),
    "qlora": dict(llm_lora=LORA, llm_quantization=dict(load_in_4bit=True)),
    "encoder": dict(freeze_visual_encoder=False),
}
HOLDINGS = ["plain", "as under ZeRO"]


def check(capability, family, stage, holding):
    """Runs a forward pass; each sample has an attention of its own in each layer without flash attention."""
    dtype = torch.bfloat16 if capability >= (8, 0) else torch.float16
    model = build(family, dtype, **STAGES[stage])
    with fake_cuda(capability):
        watch = run_forward(model, None if holding == "plain" else dtype)
    assert watch.waits == [] and watch.unaligned == [] and watch.float32_dropouts == []
    has_flash, half = capability >= (8, 0), str(dtype).removeprefix("torch.")
    assert watch.calls["torch_attn::_varlen_attn"] == LAYERS * has_flash
    assert watch.attention == {half: LAYERS + (0 if has_flash else LAYERS * SAMPLES)}  # of the encoder, and of the LLM
    if model.visual_encoder_is_frozen:
        assert watch.layer_norms[half] >= 2 * LAYERS  # beside them stands the projector's


@pytest.mark.parametrize("holding", HOLDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_on_hopper(family, holding):
    for stage in STAGES:
        check((9, 0), family, stage, holding)


@pytest.mark.parametrize("holding", HOLDINGS)
@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9)])
def test_on_other_devices(capability, holding):
    for family, stage in itertools.product(("qwen2", "qwen3"), STAGES):
        check(capability, family, stage, holding)


def test_flash_needs_ampere_half_precision_and_no_dropout():
    for capability, runs in (((7, 5), False), ((8, 0), True), ((8, 6), True), ((8, 9), True), ((12, 0), True)):
        with fake_cuda(capability):
            for dtype, dropout, head_dim, has_kernel in (
                (torch.bfloat16, 0.0, 128, True),
                (torch.float16, 0.0, 256, True),
                (torch.float32, 0.0, 128, False),
                (torch.float16, 0.1, 128, False),
                (torch.float16, 0.0, 512, False),
                (torch.float16, 0.0, 100, False),
            ):
                query = torch.empty(1, 2, 3, head_dim, dtype=dtype, device="cuda")
                assert _flash_runs(query, dropout) == (runs and has_kernel), (capability, dtype, dropout, head_dim)
