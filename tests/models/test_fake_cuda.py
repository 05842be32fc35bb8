"""Which kernels a GPU gets, at true width: attention without masks, and no wait for the device."""

import collections
import itertools

import torch
from torch.utils._pytree import tree_leaves

from benchmarks import bench_memory_plan
from benchmarks.fake_gpu import LiveBytes
from benchmarks.random_model import config_of
from xtuner_plugins.models import attention
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.published import BASES

from .batches import LORA

LAYERS = 2
FAMILIES = ("InternVL3-2B", "InternVL3_5-2B", "InternVL2_5-2B", "InternVL2-4B", "InternVL3_5-30B-A3B")
STAGES = (dict(freeze_llm=False), dict(llm_lora=LORA | dict(lora_dropout=0.05)), dict(freeze_visual_encoder=False))


class Watch(LiveBytes):
    """Counts what a step on fake CUDA tensors asks of the device, by name and dtype, and copies to or from the CPU."""

    def __init__(self):
        super().__init__()
        self.calls, self.waits = collections.Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = super().__torch_dispatch__(function, types, args, kwargs or {}), function._schema.name
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.calls.update((name, each.dtype) for each in tensors[:1])
        if name in ("aten::_to_copy", "aten::copy_") and len({each.device.type for each in tensors}) > 1:
            self.waits.append(name)
        return result


def test_a_step_of_each_family(monkeypatch):
    """Forward and backward pass, with trained weights in float32 or all in bfloat16, with flash attention or without.

    `tests/planning` says that they keep no more than planned.
    """
    batch, half = Batch(tokens=4096, tiles=4, supervised=4000), torch.bfloat16  # more targets than a chunk has
    kernels = [*itertools.product(FAMILIES, (True,)), (FAMILIES[0], False)]
    for (base, has_flash), settings, holding in itertools.product(kernels, STAGES, ("plain", "bf16")):
        config, watch, case = config_of(BASES[base], LAYERS), Watch(), (base, settings, holding, has_flash)
        # Dense blocks: transformers' loop over experts asks the device which of them have tokens.
        config.llm_config.mlp_only_layers = [0, 1]
        monkeypatch.setattr(attention, "_FLASH_CAPABILITY", (8, 0) if has_flash else (9, 1))
        monkeypatch.setattr(bench_memory_plan, "LiveBytes", lambda watch=watch: watch)
        settings = {"base": base, "gradient_checkpointing": False, **settings}
        bench_memory_plan.measure(config, settings, batch, holding)
        assert watch.waits == [], case
        assert watch.calls["aten::native_dropout", torch.float32] == 0, case
        assert watch.calls["torch_attn::_varlen_attn", half] == LAYERS * has_flash, case
        dense = LAYERS * (1 if has_flash else 2)  # the encoder's, and the LLM's
        assert watch.calls["aten::_scaled_dot_product_flash_attention", half] == dense, case
        if settings.get("freeze_visual_encoder", True):  # beside its own norms stands the projector's
            assert watch.calls["aten::native_layer_norm", half] >= 2 * LAYERS, case
