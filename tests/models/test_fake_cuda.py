"""Which kernels a GPU gets, at true width: attention without masks, aligned products, and no wait for the device."""

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from benchmarks.bench_memory_plan import materialize
from benchmarks.random_model import build_random, config_of
from xtuner_plugins.models.attention import _flash_runs
from xtuner_plugins.models.rows import make_row
from xtuner_plugins.planning.published import BASES

from .batches import LORA
from .fake_cuda import Watch, fake_cuda

LAYERS, TOKENS, TILES, SAMPLES, SUPERVISED = 2, 8192, 13, 20, 4000  # of a pack, with more targets than a chunk has
QWEN2, QWEN3 = "InternViT-300M-Qwen2.5-1.5B", "InternVL3_5-2B"
FAMILIES = (QWEN2, QWEN3, "InternVL2_5-2B", "InternVL2-4B", "InternVL3_5-30B-A3B")
STAGES = (
    dict(freeze_llm=False),
    dict(llm_lora=LORA | dict(r=16, lora_dropout=0.05)),
    dict(freeze_visual_encoder=False),
)


def build(base, dtype, **settings):
    """The training model of a base at true width, on the meta device."""
    config = config_of(BASES[base], LAYERS)
    # Dense blocks: transformers' loop over experts asks the device which of them have tokens. And recomputation would
    # ask for the state of a random generator.
    config.llm_config.mlp_only_layers = [0, 1]
    settings = {"base": base, "gradient_checkpointing": False, **settings}
    return build_random(config, settings, str(dtype).removeprefix("torch."), torch.device("meta"))


def run_forward(model, capability, held):
    """The forward pass of a pack: what it asks of the device, and the calls of PyTorch's attention.

    Weights have the dtype ``held``, as under DeepSpeed; None leaves trained ones in float32, as without it.
    """
    ids = (torch.arange(TOKENS)[None] >= TILES * model.num_image_token).long()  # the id of image tokens is 0
    bounds = torch.arange(SAMPLES + 1, dtype=torch.int32) * TOKENS // SAMPLES
    labels = torch.where(torch.arange(TOKENS) < SUPERVISED, ids, -100)
    row = make_row({"input_ids": ids, "labels": labels, "cu_seqlens": bounds}, 0)
    attention = F.scaled_dot_product_attention
    with fake_cuda(capability):
        materialize(model, held)
        row = tree_map_only(torch.Tensor, lambda each: torch.empty(each.shape, dtype=each.dtype, device="cuda"), row)
        pixels = torch.zeros(TILES, 3, model.tile_size, model.tile_size, device="cuda")
        mean_weight = torch.ones((), device="cuda")
        with mock.patch.object(F, attention.__name__, wraps=attention) as attention, Watch() as watch:
            loss = model(row, pixels, mean_weight=mean_weight)["loss"]
    assert loss.device.type == "cuda" and loss.dtype == torch.float32
    return watch, attention.call_args_list


@pytest.mark.parametrize("capability, bases", [((9, 0), FAMILIES), ((7, 5), (QWEN2,)), ((8, 6), (QWEN3,))])
def test_the_forward_pass_of_each_family(capability, bases):
    """Without flash attention each sample has an attention of its own in each layer, without repeated heads."""
    has_flash = capability >= (8, 0)
    dtype = torch.bfloat16 if has_flash else torch.float16
    for base, settings, held in itertools.product(bases, STAGES, (None, dtype)):
        model, case = build(base, dtype, **settings), (base, settings, held)
        watch, attention = run_forward(model, capability, held)
        assert watch.waits == [] and watch.unaligned == [], case
        assert watch.calls["aten::native_dropout", torch.float32] == watch.calls["aten::bernoulli", torch.float32] == 0
        assert watch.calls["torch_attn::_varlen_attn"] == LAYERS * has_flash, case
        assert len(attention) == LAYERS + (0 if has_flash else LAYERS * SAMPLES), case
        assert all(q.dtype == dtype and q.shape[1] == k.shape[1] for q, k, _ in (call.args for call in attention)), case
        if model.visual_encoder_is_frozen:  # beside its own stands the projector's
            assert watch.calls["aten::native_layer_norm", dtype] >= 2 * LAYERS, case


def test_flash_needs_ampere_half_precision_and_no_dropout():
    half, whole = torch.float16, torch.float32
    for capability, dtype, dropout, head_dim, expected in (
        ((7, 5), half, 0.0, 128, False),
        ((8, 0), half, 0.0, 128, True),
        ((8, 6), torch.bfloat16, 0.0, 256, True),
        ((12, 0), half, 0.0, 128, True),
        ((9, 0), whole, 0.0, 128, False),
        ((9, 0), half, 0.1, 128, False),
        ((9, 0), half, 0.0, 264, False),
        ((9, 0), half, 0.0, 100, False),
    ):
        with fake_cuda(capability):
            query = torch.empty(1, 2, 3, head_dim, dtype=dtype, device="cuda")
            assert _flash_runs(query, dropout) == expected, (capability, dtype, dropout, head_dim)
