"""Which weights of a part train, for each kind of encoder: counted, moved, saved, exported."""

import pytest
import torch
from peft import LoraConfig

from tests.models.test_encoders import step
from tests.models.test_vlm import make_batch, run
from tests.weights.training import save_pth, write_config
from xtuner_plugins.export import trained
from xtuner_plugins.export.export import export
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.encoders import used_blocks
from xtuner_plugins.weights.model_view import open_model
from xtuner_plugins.weights.reading import CheckpointError

LORA = dict(type=LoraConfig, r=2, lora_alpha=4)


def make(base, **settings):
    return VisionLanguageModel(base=base, dtype="float32", **settings)


@pytest.mark.parametrize("encoder_base", ["intern_vit", "clip", "siglip"], indirect=True)
class TestLastLayers:
    @pytest.mark.parametrize("recompute", [False, True])
    def test_the_graph_begins_at_the_first_of_them(self, encoder_base, recompute):
        model = make(encoder_base, visual_encoder_last_layers=1, gradient_checkpointing=recompute).train()
        blocks = used_blocks(model.model.vision_model, model.model.select_layer)
        runs, outputs = [], {}
        for index, block in enumerate(blocks):
            # Before the block: recomputing ends within a block, once it has all that the backward pass needs.
            block.register_forward_pre_hook(lambda _module, _inputs, index=index: runs.append(index))
            block.register_forward_hook(lambda _m, _i, output, index=index: outputs.setdefault(index, output))
        run(model, make_batch(model, length=160))["loss"].backward()
        hidden = [output[0] if isinstance(output, tuple) else output for output in outputs.values()]
        assert [state.requires_grad for state in hidden] == [False] * (len(blocks) - 1) + [True]
        assert runs == [*range(len(blocks)), *([len(blocks) - 1] if recompute else [])]
        assert [block.training for block in blocks] == [False] * (len(blocks) - 1) + [True]

    def test_its_gradient_is_that_of_the_whole_encoder(self, encoder_base):
        gradients = []
        for settings in (dict(visual_encoder_last_layers=1), dict(freeze_visual_encoder=False)):
            model = make(encoder_base, **settings).train()
            run(model, make_batch(model, length=160))["loss"].backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() < gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8, msg=name)

    def test_the_export_holds_them_and_the_bases_other_blocks(self, encoder_base, tmp_path):
        settings = dict(visual_encoder_last_layers=1)
        model = make(encoder_base, **settings)
        step(model, tiles_of=(1, 0))
        config = write_config(tmp_path / "c.py", encoder_base, **settings)
        export(config, save_pth(model, tmp_path / "iter_1.pth", config), tmp_path / "out")
        exported, started = open_model(tmp_path / "out").tensors, open_model(encoder_base).tensors
        live = {name.removeprefix("model."): p for name, p in model.named_parameters()}
        assert exported.keys() == started.keys()
        for name, tensor in exported.items():
            assert torch.equal(tensor.read(), live[name] if live[name].requires_grad else started[name].read()), name
        with pytest.raises(CheckpointError, match=r"visual_encoder_last_layers=2\), but .* lacks"):
            config = write_config(tmp_path / "d.py", encoder_base, visual_encoder_last_layers=2)
            trained.lay_over(None, save_pth(model, tmp_path / "iter_2.pth", config))

    @pytest.mark.parametrize("count", [0, 4, -1])
    def test_more_than_there_are(self, encoder_base, count):
        model = make(encoder_base)
        used = len(used_blocks(model.model.vision_model, model.model.select_layer))
        with pytest.raises(ValueError, match=f"last_layers={count} is out of range.*{used} blocks.*give 1 to {used}"):
            make(encoder_base, visual_encoder_last_layers=count)


LLM_LORA = dict(type=LoraConfig, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])


def test_a_checkpoint_without_the_head(toy_base, tmp_path):
    config = write_config(tmp_path / "c.py", toy_base, train_head=True)
    checkpoint = save_pth(make(str(toy_base)), tmp_path / "iter_1.pth", config)
    with pytest.raises(CheckpointError, match=r"\(model.train_head=True\), but .* lacks 1 of its tensors"):
        trained.lay_over(config, checkpoint)


FULL_LLM = dict(freeze_llm=False)
LAST, PACKED = dict(visual_encoder_last_layers=1), dict(load_in_4bit=True)


@pytest.mark.parametrize(
    "settings, message",
    [
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
        (dict(train_head=True, llm_lora={**LLM_LORA, "target_modules": ["lm_head"]}), "leave out one of them"),
        (dict(train_head=True, llm_lora={**LLM_LORA, "modules_to_save": ["lm_head"]}), "leave out one of them"),
    ],
)
def test_what_can_not_train_is_refused(toy_base, settings, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel(base=str(toy_base), **{"dtype": "float32", **settings})
