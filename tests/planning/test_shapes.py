"""Released models: shapes are those of the real classes, and each base has the learning rate that fits it."""

from benchmarks.random_model import meta_model
from xtuner_plugins.families import PARTS
from xtuner_plugins.planning.published import BASES, ENCODERS, LLMS, released_rate
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.settings import leaves, read_config

NAMES = ("InternViT-300M-Qwen2.5-1.5B", "SigLIP-Qwen2.5-0.5B", "CLIP-Qwen-7B", "InternVL2-4B", "InternVL2-26B")
NAMES += ("InternVL3_5-8B", "InternVL3_5-8B-Flash-base", "InternVL3_5-30B-A3B")
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
        if shape.flash:
            assert shape.mlp2 == sum(p.numel() for p in model.mlp2.parameters())
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


def test_a_released_base_has_the_rate_of_its_size():
    for base, *rates in (
        ("models/InternVL3_5-1B", 1e-5, 1e-4),
        ("/data/InternVL3-8B-Instruct", 2e-5, 1e-4),
        ("models/InternVL3_5-30B-A3B", 2e-5, 5e-5),
        ("models/InternVL2_5-8B", 4e-5, 1e-4),
        ("models/InternVL-Chat-V1-5", 2e-5, 5e-5),
        ("exports/pretrain_mlp", None, None),
    ):
        assert [released_rate(base, has_lora=has_lora) for has_lora in (False, True)] == rates, base


def test_leaves_have_the_rate_of_their_base():
    """The leaves of released models state it; one table must not say another thing than they do."""
    for name in leaves():
        config = read_config(name)
        model = config.model
        if "objectives" in model or name == "internvl_v3_5_sft" or not config.filename.count("/internvl_v"):
            continue
        rate = released_rate(model.base, has_lora=bool(model.get("llm_lora")))
        assert rate == config.optim_wrapper.optimizer.lr, name
