"""Which weights of a part train, for each kind of encoder: counted, moved, saved, exported."""

import pytest
import torch

from tests.weights.training import save_pth, write_config
from xtuner_plugins.export import trained
from xtuner_plugins.export.export import export
from xtuner_plugins.models.encoders import used_blocks
from xtuner_plugins.weights.model_view import open_model
from xtuner_plugins.weights.reading import CheckpointError

from .batches import LORA, assert_same, backward, build, learn, make_batch

LAST, PACKED, FULL_LLM = dict(visual_encoder_last_layers=1), dict(load_in_4bit=True), dict(freeze_llm=False)
PLACED = LORA | dict(target_modules=["q_proj", "down_proj"])


@pytest.mark.parametrize("encoder_base", ["intern_vit", "clip", "siglip"], indirect=True)
class TestLastLayers:
    def test_their_gradient_is_that_of_the_whole_encoder(self, encoder_base):
        """And the graph begins at the first of them."""
        whole = build(encoder_base, freeze_visual_encoder=False).train()
        batch = make_batch(whole, length=160)
        expected = backward(whole, batch)[1]
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

    def test_the_export_holds_them_and_the_bases_other_blocks(self, encoder_base, tmp_path):
        model = build(encoder_base, **LAST)
        learn(model, make_batch(model, (1, 0), length=160), 2)
        config = write_config(tmp_path / "c.py", encoder_base, **LAST)
        export(config, save_pth(model, tmp_path / "iter_1.pth", config), tmp_path / "out")
        exported, started = open_model(tmp_path / "out").tensors, open_model(encoder_base).tensors
        live = {name.removeprefix("model."): p for name, p in model.named_parameters()}
        assert exported.keys() == started.keys()
        for name, tensor in exported.items():
            assert torch.equal(tensor.read(), live[name] if live[name].requires_grad else started[name].read()), name
        for settings, lacks in (
            (dict(visual_encoder_last_layers=2), r"visual_encoder_last_layers=2\), but .* lacks"),
            (dict(**LAST, train_head=True), r"train_head=True\), but .* lacks 1 of its tensors"),
        ):
            config = write_config(tmp_path / "d.py", encoder_base, **settings)
            with pytest.raises(CheckpointError, match=lacks):
                trained.lay_over(None, save_pth(model, tmp_path / "iter_2.pth", config))

    def test_more_than_there_are(self, encoder_base):
        model = build(encoder_base)
        used = len(used_blocks(model.model.vision_model, model.model.select_layer))
        for count in (0, 4, -1):
            message = f"last_layers={count} is out of range.*{used} blocks.*give 1 to {used}"
            with pytest.raises(ValueError, match=message):
                build(encoder_base, visual_encoder_last_layers=count)


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
