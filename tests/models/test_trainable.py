"""Which weights of a part train, for each kind of encoder: counted, moved, saved, exported."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.checkpoints.training import chat_inputs, logits, save_pth, with_context, write_config
from tests.models.test_encoders import step
from tests.models.test_vlm import make_batch, run
from xtuner_plugins.checkpoints import trained
from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.checkpoints.export import export
from xtuner_plugins.checkpoints.formats import open_model
from xtuner_plugins.checkpoints.io.reader import CheckpointError
from xtuner_plugins.checkpoints.loader import load_model, load_trained
from xtuner_plugins.checkpoints.lora.adapters import export_adapter
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models.encoders import used_blocks
from xtuner_plugins.toy.vision_towers import write_tower

LORA = dict(type=LoraConfig, r=2, lora_alpha=4)


@pytest.fixture(scope="module", params=["intern_vit", "clip", "siglip"])
def base(request, toy_base, toy_parts, tmp_path_factory):
    """InternViT uses all of its blocks, CLIP and SigLIP the first 2 of 3."""
    if request.param == "intern_vit":
        return str(toy_base)
    folder = tmp_path_factory.mktemp(request.param)
    write_tower(folder / "tower", request.param)
    build_base(folder / "tower", toy_parts[1], folder / "base", dtype="float32")
    return str(folder / "base")


def make(base, **settings):
    return VisionLanguageModel(base=base, dtype="float32", **settings)


class TestLastLayers:
    @pytest.mark.parametrize("recompute", [False, True])
    def test_the_graph_begins_at_the_first_of_them(self, base, recompute):
        model = make(base, visual_encoder_last_layers=1, gradient_checkpointing=recompute).train()
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

    def test_its_gradient_is_that_of_the_whole_encoder(self, base):
        gradients = []
        for settings in (dict(visual_encoder_last_layers=1), dict(freeze_visual_encoder=False)):
            model = make(base, **settings).train()
            run(model, make_batch(model, length=160))["loss"].backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() < gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8, msg=name)

    def test_the_export_holds_them_and_the_bases_other_blocks(self, base, tmp_path):
        settings = dict(visual_encoder_last_layers=1)
        model = make(base, **settings)
        step(model, tiles_of=(1, 0))
        config = write_config(tmp_path / "c.py", base, **settings)
        export(config, save_pth(model, tmp_path / "iter_1.pth"), tmp_path / "out")
        exported, started = open_model(tmp_path / "out").tensors, open_model(base).tensors
        live = {name.removeprefix("model."): p for name, p in model.named_parameters()}
        assert exported.keys() == started.keys()
        for name, tensor in exported.items():
            assert torch.equal(tensor.read(), live[name] if live[name].requires_grad else started[name].read()), name
        with pytest.raises(CheckpointError, match=r"visual_encoder_last_layers=2\), but .* lacks"):
            trained.lay_over(
                write_config(tmp_path / "d.py", base, visual_encoder_last_layers=2), tmp_path / "iter_1.pth"
            )

    @pytest.mark.parametrize("count", [0, 4, -1])
    def test_more_than_there_are(self, base, count):
        model = make(base)
        used = len(used_blocks(model.model.vision_model, model.model.select_layer))
        with pytest.raises(ValueError, match=f"last_layers={count} is out of range.*{used} blocks.*give 1 to {used}"):
            make(base, visual_encoder_last_layers=count)


LLM_LORA = dict(type=LoraConfig, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
HEAD = "language_model.lm_head.weight"
HEADS = {
    "head": dict(train_head=True),
    "head beside LoRA": dict(train_head=True, llm_lora=LLM_LORA),
    "head by PEFT": dict(llm_lora={**LLM_LORA, "modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_trained_head_is_exported_and_opens_again(kind, toy_base, tmp_path):
    """Of a model after two steps: merged, from its checkpoint, and as an adapter, where it has one."""
    settings = HEADS[kind]
    torch.manual_seed(0)
    model = make(str(toy_base), freeze_projector=True, **settings)
    first, second = step(model, tiles_of=(2, 0, 1))
    assert second < first
    config = write_config(tmp_path / "c.py", toy_base, freeze_projector=True, **settings)
    checkpoint = save_pth(model.eval(), tmp_path / "iter_1.pth")
    export(config, checkpoint, tmp_path / "out")
    out, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", toy_base))
    changed = {name for name in out if not torch.equal(out[name], base[name])}
    assert out.keys() == base.keys() and {name for name in changed if "layers" not in name} == {HEAD}
    assert (changed != {HEAD}) == ("llm_lora" in settings)
    inputs = chat_inputs(model.model)
    models = [load_model(tmp_path / "out", dtype=None)[0]]
    models += [load_trained(config, checkpoint, dtype=None, merge_lora=merge) for merge in (True, False)]
    for loaded in models:  # float32 products in another order where LoRA is merged
        difference = logits(with_context(loaded, model.model), inputs) - logits(model.model, inputs)
        assert difference.abs().max() <= 1e-5
    if "llm_lora" not in settings:
        with pytest.raises(CheckpointError, match="without --adapter-only"):
            export_adapter(config, checkpoint, tmp_path / "adapter")
        return
    export_adapter(config, checkpoint, tmp_path / "adapter")
    export(config, tmp_path / "adapter", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    replaced = load_file(tmp_path / "adapter" / "replaced.safetensors")
    assert set(replaced) == {HEAD} and all(torch.equal(out[name], again[name]) for name in out)


def test_a_checkpoint_without_the_head(toy_base, tmp_path):
    checkpoint = save_pth(make(str(toy_base)), tmp_path / "iter_1.pth")
    config = write_config(tmp_path / "c.py", toy_base, train_head=True)
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
