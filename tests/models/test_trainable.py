"""Which weights of a part train, for each kind of encoder: counted; and stochastic depth."""

import shutil

import pytest
import torch

from tests.vision_towers import write_tower
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.families import encoder_family
from xtuner_plugins.models.blocks import used_blocks

from .batches import LORA, assert_same, backward, build, make_batch

LAST, PACKED, FULL_LLM = dict(visual_encoder_last_layers=1), dict(load_in_4bit=True), dict(freeze_llm=False)
PLACED = LORA | dict(target_modules=["q_proj", "down_proj"])


@pytest.fixture(scope="module", params=["intern_vit", "clip", "siglip"])
def encoder_base(request, toy_base, toy_parts, tmp_path_factory):
    """A base with this kind of encoder; InternViT uses all of its blocks, CLIP and SigLIP the first 2 of 3."""
    if request.param == "intern_vit":
        return str(toy_base)
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return str(folder / "base")


def test_last_blocks_get_the_gradient_of_the_whole_encoder(encoder_base):
    """And the graph begins at the first of them. What no feature depends on doesn't train: DDP would wait for it."""
    whole = build(encoder_base, freeze_visual_encoder=False).train()
    batch = make_batch(whole, length=160)
    expected = backward(whole, batch)[1]
    # Keys' biases move every score of a query alike, so softmax gives them no gradient but rounding.
    assert all(grad.abs().max() > 0 for name, grad in expected.items() if not name.endswith("k_proj.bias"))
    assert expected.keys() == set(whole.state_dict())
    encoder = whole.model.vision_model  # of CLIP and SigLIP a layer and the final norm are used nowhere
    unused = sum(not p.requires_grad for p in encoder.parameters())
    assert unused == (16 + 2 if hasattr(encoder, "unused_modules") else 0)
    for recompute in (False, True):
        model, runs, outputs = build(encoder_base, **LAST, gradient_checkpointing=recompute).train(), [], {}
        blocks = used_blocks(model.model.vision_model, model.model.select_layer)
        for index, block in enumerate(blocks):
            # Before the block: recomputing ends within a block, once it has all that the backward pass needs.
            block.register_forward_pre_hook(lambda _m, _i, index=index, runs=runs: runs.append(index))
            block.register_forward_hook(lambda _m, _i, y, index=index, to=outputs: to.setdefault(index, y))
        gradients = backward(model, batch)[1]
        hidden = [output[0] if isinstance(output, tuple) else output for output in outputs.values()]
        below = len(blocks) - 1
        assert [state.requires_grad for state in hidden] == [False] * below + [True]
        assert runs == [*range(len(blocks)), *([below] if recompute else [])]
        assert [block.training for block in blocks] == [False] * below + [True]
        assert gradients.keys() < expected.keys()
        assert_same(gradients, {name: expected[name] for name in gradients}, rtol=1e-5, atol=1e-8)


def test_adapters_are_where_the_row_says(encoder_base):
    model = build(encoder_base, visual_encoder_lora=LORA, freeze_projector=True).train()
    targets = encoder_family(model.model.config.vision_config.to_dict()).lora_targets
    used = used_blocks(model.model.vision_model, model.model.select_layer)
    gradients = backward(model, make_batch(model, length=160))[1]
    assert gradients.keys() == set(model.state_dict()) and len(gradients) == 2 * len(used) * len(targets)
    assert all(any(f".{target}.lora_" in name for target in targets) for name in gradients)
    for settings, message in (
        *((dict(visual_encoder_last_layers=n), f"={n} is out of range.*give 1 to {len(used)}") for n in (0, 4, -1)),
        (dict(drop_path=1.0), "drop_path=1.0 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            build(encoder_base, **settings)
    if hasattr(model.model.vision_model, "unused_modules"):
        with pytest.raises(ValueError, match="InternViT has; set it to 0"):
            build(encoder_base, drop_path=0.1)


def test_drop_path_is_that_of_the_settings_and_only_of_what_trains(toy_base, tmp_path):
    """Whatever the base says: official exports name the rate of their training."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"drop_path_rate": 0.0', '"drop_path_rate": 0.9'))

    def encoded(seed=0, training=True, **settings):
        model = build(base, **settings).train(training)
        torch.manual_seed(seed)
        return model._encode(torch.ones(4, 3, model.tile_size, model.tile_size))

    plain = encoded()
    for settings in (dict(freeze_visual_encoder=False), LAST, dict(visual_encoder_lora=LORA)):
        dropped = encoded(drop_path=0.5, **settings)
        assert not torch.equal(dropped, plain) and torch.equal(encoded(1, **settings), plain)
        assert torch.equal(encoded(drop_path=0.5, **settings), dropped)  # seed, rank and step decide: `seed_step`
        assert not torch.equal(encoded(1, drop_path=0.5, **settings), dropped)
        assert torch.equal(encoded(training=False, drop_path=0.5, **settings), plain)
    assert torch.equal(encoded(drop_path=0.5), plain)


def test_what_can_not_train_is_refused(toy_base):
    for settings, message in (
        (dict(freeze_visual_encoder=False, **LAST), "set freeze_visual_encoder=True"),
        (dict(visual_encoder_lora=LORA, **LAST), "set visual_encoder_lora=None"),
        (dict(visual_encoder_quantization=PACKED, **LAST), "set visual_encoder_quantization=None"),
        (dict(visual_encoder_lora=LORA, freeze_visual_encoder=False), "visual_encoder_lora is set, so set freeze_vis"),
        (dict(visual_encoder_quantization=PACKED, freeze_visual_encoder=False), "packed weights don't train"),
        (dict(llm_lora=LORA, **FULL_LLM), "freeze_llm=True"),
        (dict(llm_quantization=PACKED, **FULL_LLM), "freeze_llm=True"),
        (dict(llm_quantization=dict(load_in_4bit=False)), "set load_in_4bit=True"),
        (dict(llm_quantization=dict(load_in_8bit=True)), "set load_in_4bit=True"),
        (dict(llm_quantization=dict(load_in_4bit=True, load_in_8bit=True)), "load_in_8bit"),
        (dict(llm_quantization=dict(load_in_4bit=True, bits=8)), "llm_quantization: .* has no setting bits"),
        (dict(llm_lora=dict(r=4, alpha=8)), "llm_lora: .*alpha"),
        (dict(llm_lora=dict(r=4, target_modules=["nope"])), "nope"),
        (dict(llm_lora=dict(r=0)), "lora_rank=0 is out of range; give a whole number, 1 or more"),
        (dict(dtype="float17"), "float17"),
        (dict(freeze_projector=True), "nothing would train"),
        (dict(train_head=True, **FULL_LLM), "leave out train_head"),
        (dict(train_head=True, llm_lora={**PLACED, "target_modules": ["lm_head"]}), "leave out one of them"),
        (dict(train_head=True, llm_lora={**PLACED, "modules_to_save": ["lm_head"]}), "leave out one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            build(toy_base, **settings)
