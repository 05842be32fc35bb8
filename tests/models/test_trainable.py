"""Which weights of a part train, for each kind of encoder: counted, moved, saved, exported."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.checkpoints.training import chat_inputs, logits, save_pth, write_config
from tests.models.test_encoders import step
from tests.models.test_vlm import make_batch, run
from xtuner_plugins.checkpoints import trained
from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.checkpoints.export import export
from xtuner_plugins.checkpoints.formats import open_model
from xtuner_plugins.checkpoints.io.reader import CheckpointError
from xtuner_plugins.checkpoints.loader import load_model, load_tokenizer, load_trained
from xtuner_plugins.checkpoints.lora.adapters import export_adapter
from xtuner_plugins.hub.constants import ADDED_TOKENS
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
    def test_only_the_last_used_blocks_move(self, base, recompute):
        model = make(base, visual_encoder_last_layers=1, freeze_projector=True, gradient_checkpointing=recompute)
        blocks = used_blocks(model.model.vision_model, model.model.select_layer)
        last = {id(p) for p in blocks[-1].parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == last
        assert len(model.state_dict()) == len(last)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        first, second = step(model, tiles_of=(2, 0, 1))
        assert second < first
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        # Keys' biases move every score of a query alike, so softmax gives them no gradient but rounding.
        expected = {name for name in model.state_dict() if not name.endswith("k_proj.bias")}
        assert expected <= moved <= set(model.state_dict())

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


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(freeze_visual_encoder=False), "set freeze_visual_encoder=True"),
        (dict(visual_encoder_lora=LORA), "set visual_encoder_lora=None"),
        (dict(visual_encoder_quantization=dict(load_in_4bit=True)), "set visual_encoder_quantization=None"),
    ],
)
def test_contradictions_of_last_layers(toy_base, settings, message):
    with pytest.raises(ValueError, match=message):
        make(str(toy_base), visual_encoder_last_layers=1, **settings)


LLM_LORA = dict(type=LoraConfig, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
EXTRAS = {
    "head": dict(train_head=True),
    "rows": dict(train_new_tokens=True),
    "head and rows": dict(train_head=True, train_new_tokens=True),
    "head beside LoRA": dict(train_head=True, llm_lora=LLM_LORA),
    "rows beside LoRA": dict(train_new_tokens=True, llm_lora=LLM_LORA),
    "head by PEFT": dict(llm_lora={**LLM_LORA, "modules_to_save": ["lm_head"]}),
}


def new_ids(base):
    return sorted(load_tokenizer(base).convert_tokens_to_ids(list(ADDED_TOKENS)))


@pytest.fixture(scope="module", params=EXTRAS)
def extras(request, toy_base, tmp_path_factory):
    """Settings, a model after two steps of training, its config and its checkpoint."""
    settings, folder = EXTRAS[request.param], tmp_path_factory.mktemp("extras")
    torch.manual_seed(0)
    model = make(str(toy_base), freeze_projector=True, **settings)
    batch = make_batch(model)
    in_text = [index for index in new_ids(toy_base) if index != model.img_context_token_id]
    batch["input_ids"][1, 10:18] = torch.tensor(in_text)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(2):
        losses.append(run(model.train(), batch)["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    config = write_config(folder / "c.py", toy_base, freeze_projector=True, **settings)
    return settings, model.eval(), config, save_pth(model, folder / "iter_1.pth")


class TestHeadAndRows:
    def test_only_they_change_in_the_export(self, extras, toy_base, tmp_path):
        settings, model, config, checkpoint = extras
        export(config, checkpoint, tmp_path / "out")
        out, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", toy_base))
        assert out.keys() == base.keys()
        changed = {name for name in out if not torch.equal(out[name], base[name])}
        whole_head = settings.get("train_head", "modules_to_save" in settings.get("llm_lora", {}))
        rows = settings.get("train_new_tokens", False)
        assert {name for name in changed if "layers" not in name} == (
            ({HEAD} if whole_head or rows else set()) | ({EMBEDDING} if rows else set())
        )
        assert any("layers" in name for name in changed) == ("llm_lora" in settings)
        if rows:
            ids = new_ids(toy_base)
            moved = (out[EMBEDDING] != base[EMBEDDING]).any(1).nonzero().flatten().tolist()
            # A feature stands in place of each image token, so its row gets no gradient.
            assert moved == [index for index in ids if index != model.img_context_token_id]
            if not whole_head:
                assert (out[HEAD] != base[HEAD]).any(1).nonzero().flatten().tolist() == ids

    def test_export_and_checkpoint_equal_the_live_model(self, extras, tmp_path):
        settings, model, config, checkpoint = extras
        export(config, checkpoint, tmp_path / "out")
        inputs = chat_inputs(model.model)
        expected = logits(model.model, inputs)
        models = [load_model(tmp_path / "out", dtype=None)[0]]
        models += [load_trained(config, checkpoint, dtype=None, merge_lora=merge) for merge in (True, False)]
        for loaded in models:
            loaded.img_context_token_id = model.img_context_token_id
            # float32 products in another order where LoRA is merged
            assert (logits(loaded, inputs) - expected).abs().max() <= 1e-5

    def test_as_an_adapter(self, extras, tmp_path):
        settings, _, config, checkpoint = extras
        if "llm_lora" not in settings:
            with pytest.raises(CheckpointError, match="without --adapter-only"):
                export_adapter(config, checkpoint, tmp_path / "adapter")
            return
        export_adapter(config, checkpoint, tmp_path / "adapter")
        export(config, checkpoint, tmp_path / "out")
        export(config, tmp_path / "adapter" / "language_model", tmp_path / "again")
        out, again = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
        replaced = {}
        if (tmp_path / "adapter" / "replaced.safetensors").exists():
            replaced = load_file(tmp_path / "adapter" / "replaced.safetensors")
        assert set(replaced) == ({HEAD} if "train_new_tokens" not in settings else set())
        assert all(torch.equal(out[name], {**again, **replaced}[name]) for name in out)

    @pytest.mark.parametrize("missing", ["train_head", "train_new_tokens"])
    def test_a_checkpoint_without_them(self, missing, toy_base, tmp_path):
        checkpoint = save_pth(make(str(toy_base)), tmp_path / "iter_1.pth")
        config = write_config(tmp_path / "c.py", toy_base, **{missing: True})
        with pytest.raises(CheckpointError, match=rf"model.{missing}=True, but .* lacks"):
            trained.lay_over(config, checkpoint)


def test_rows_of_a_frozen_half_precision_llm_train(toy_base):
    model = VisionLanguageModel(base=str(toy_base), dtype="bfloat16", train_new_tokens=True, freeze_projector=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    run(model.train(), make_batch(model))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(train_head=True, freeze_llm=False), "leave out train_head"),
        (dict(train_new_tokens=True, freeze_llm=False), "leave out train_new_tokens"),
        (dict(train_head=True, llm_lora={**LLM_LORA, "target_modules": ["lm_head"]}), "leave out one of them"),
        (dict(train_head=True, llm_lora={**LLM_LORA, "modules_to_save": ["lm_head"]}), "leave out one of them"),
        (dict(train_new_tokens=True, llm_lora={**LLM_LORA, "trainable_token_indices": [1]}), "leave out one of them"),
    ],
)
def test_contradictions_of_head_and_rows(toy_base, settings, message):
    with pytest.raises(ValueError, match=message):
        make(str(toy_base), **settings)


def test_rows_need_whole_matrices(toy_base, monkeypatch):
    monkeypatch.setattr("xtuner_plugins.models.trainable.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="deepspeed_zero2"):
        make(str(toy_base), train_new_tokens=True)
