"""Shapes are those of the real classes: parameters, linear layers, image tokens."""

from benchmarks.random_model import meta_model
from xtuner_plugins.families import PARTS
from xtuner_plugins.planning.published import BASES, ENCODERS, LLMS
from xtuner_plugins.planning.shapes import shape_of

NAMES = ("InternViT-300M-Qwen2.5-1.5B", "SigLIP-Qwen2.5-0.5B", "CLIP-Qwen-7B", "InternVL2-4B", "InternVL2-26B")
NAMES += ("InternVL3_5-8B", "InternVL3_5-30B-A3B")
# Totals in billions as model cards and stored tensors give them.
PUBLISHED = {
    "InternVL2-1B": "0.9382",
    "InternVL2-8B": "8.08",
    "InternVL2-26B": "25.5",
    "InternVL2_5-2B": "2.206",
    "InternVL2_5-4B": "3.71",
    "InternVL3-8B": "7.94",
    "InternVL3-14B": "15.1",
    "InternVL3-38B": "38.4",
    "InternVL3_5-1B": "1.061",
    "InternVL3_5-8B": "8.53",
    "InternVL3_5-30B-A3B": "30.8",
}


def test_totals_are_the_published_ones():
    assert all(base.encoder in ENCODERS and base.llm in LLMS for base in BASES.values())
    for name, billions in PUBLISHED.items():
        total = shape_of(BASES[name].config).parameters
        assert f"{total / 1e9:.{len(billions.partition('.')[2])}f}" == billions, name


def test_shapes_are_those_of_the_classes():
    for name in NAMES:
        shape, model = shape_of(BASES[name].config), meta_model(BASES[name])
        for part, (tower, _, _) in PARTS.items():
            found = sum(p.numel() for p in model.get_submodule(tower).parameters())
            assert shape.part(part) == found, (name, part)
        assert shape.parameters == sum(p.numel() for p in model.parameters())
        assert shape.tokens_per_tile == model.num_image_token
        assert shape.projector_input == next(m.in_features for m in model.mlp1.modules() if hasattr(m, "in_features"))
        unused = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
        assert shape.unused == sum(p.numel() for module in unused for p in module.parameters())
        for stack, tower in ((shape.encoder, model.vision_model), (shape.llm, model.language_model)):
            norms = {type(module).__name__ for name, module in tower.named_modules() if "norm" in name}
            assert stack.rms_norm == any("RMS" in norm for norm in norms)
            for linear in stack.linears:
                layer = tower.get_submodule(f"{stack.prefix}.0.{linear.name}")
                assert (layer.in_features, layer.out_features) == (linear.inputs, linear.outputs)
                assert (layer.bias is not None) == linear.bias
        meta_model.cache_clear()
