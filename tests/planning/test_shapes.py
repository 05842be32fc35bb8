"""Shapes are those of the real classes: parameters, image tokens, and what PEFT would match."""

import pytest

from xtuner_plugins.families import LLM_FAMILIES, target_matcher
from xtuner_plugins.planning.plan import model_of_base
from xtuner_plugins.planning.published import BASES, meta_model
from xtuner_plugins.planning.shapes import Linear

TOWERS = {"visual_encoder": "vision_model", "projector": "mlp1", "llm": "language_model"}


@pytest.mark.parametrize("name", BASES)
def test_parameters_are_those_of_the_classes(name):
    shape, model = model_of_base(BASES[name]).shape, meta_model(BASES[name])
    for part, tower in TOWERS.items():
        assert shape.part(part) == sum(p.numel() for p in model.get_submodule(tower).parameters()), part
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.tokens_per_tile == model.num_image_token
    unused = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
    assert shape.unused == sum(p.numel() for module in unused for p in module.parameters())


@pytest.mark.parametrize("name", ["InternViT-300M-Qwen2.5-1.5B", "InternVL2-4B", "InternVL3_5-8B", "CLIP-Qwen2.5-7B"])
def test_names_of_linear_layers_are_those_of_the_classes(name):
    shape, model = model_of_base(BASES[name]).shape, meta_model(BASES[name])
    for stack, tower in ((shape.encoder, model.vision_model), (shape.llm, model.language_model)):
        for linear in stack.linears:
            layer = tower.get_submodule(f"{stack.prefix}.0.{linear.name}")
            assert (layer.in_features, layer.out_features) == (linear.inputs, linear.outputs)
            assert (layer.bias is not None) == linear.bias


def test_a_block_by_hand(shape):
    # q 16x16+16, k and v 16x8+8, o 16x16, three of 16x64, two norms of 16
    assert shape.llm.block == 272 + 2 * 136 + 256 + 3 * 1024 + 32
    assert shape.llm.parameters == 2 * shape.llm.block + 2 * 100 * 16 + 16
    assert shape.positions == 5 and shape.tokens_per_tile == 1 and shape.projector_input == 32


def test_targets_match_as_in_peft(shape):
    everything = [linear.name.split(".")[-1] for linear in shape.llm.matching(LLM_FAMILIES["qwen2"].lora_targets)]
    assert everything == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [each.name for each in shape.llm.matching(r".*\.(q_proj|up_proj)")] == ["self_attn.q_proj", "mlp.up_proj"]
    assert not target_matcher(["proj"])("model.layers.0.self_attn.q_proj")  # ends of names are whole words


def test_experts_count_once_each_and_work_eight_times():
    linear = Linear("mlp.experts.0.up_proj", 2, 3, copies=128, active=8)
    assert (linear.weights, linear.parameters) == (768, 768)
