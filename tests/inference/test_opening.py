"""One way to open a model: a directory, or what a training run left, which answers as its export does."""

import shutil

import pytest
import torch

from tests.weights.training import SETTINGS, make_model, save_pth
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.inference.opening import Source, describe, find_source, open_session

DATA = {"name": "train", "template": "Hermes-2", "min_tiles": 1, "max_tiles": 3, "use_thumbnail": True}
LOCK = {"datasets": [DATA], "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


def of(model, **options):
    return describe(find_source(model), **options)


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    """A work directory with two checkpoints of LoRA adapters, the newer with tile limits; its `.py` must not run."""
    folder = tmp_path_factory.mktemp("run")
    model = make_model(toy_base, **SETTINGS["both_loras"])
    save_pth(model, folder / "iter_2.pth", meta={"iter": 2})
    newest = save_pth(model, folder / "iter_4.pth", meta={"iter": 4}, preprocessing=LOCK)
    (folder / "last_checkpoint").write_text(str(newest))
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    return folder


def test_a_checkpoint_answers_as_its_export_and_its_adapter(run, tmp_path):
    """Settings come from the checkpoint as data."""
    export(None, run / "iter_4.pth", tmp_path / "out")
    export_adapter(None, run / "iter_4.pth", tmp_path / "adapter")
    opened = [open_session(path, device="cpu") for path in (run, tmp_path / "out", tmp_path / "adapter")]
    live, exported, _ = (session.model.state_dict() for session in opened)
    assert live.keys() == exported.keys() and all(torch.equal(live[name], exported[name]) for name in live)
    for session in opened:
        assert session.tiling == opened[0].tiling and session.tiling.max_tiles == 3
        assert session.model.template == "Hermes-2"
        assert session.answers([("Hello", [])], max_new_tokens=4) == opened[0].answers(
            [("Hello", [])], max_new_tokens=4
        )
    limited = open_session(run, max_tiles=2, dtype="bfloat16", device="cpu")
    assert limited.tiling.max_tiles == 2 and limited.model.dtype == torch.bfloat16


def test_what_the_words_mean(run):
    for words, config, name in (
        ((run,), None, "iter_4.pth"),
        ((run, "iter_2.pth"), None, "iter_2.pth"),
        ((run / "mine.py", run / "iter_2.pth"), run / "mine.py", "iter_2.pth"),
    ):
        assert find_source(*words) == Source(config, run / name) and str(find_source(*words)) == str(run / name)


def test_a_description_is_what_a_session_does(toy_base, run, tmp_path):
    """Found without reading weights; its hash is of their content, whatever their path."""
    convert(toy_base, tmp_path / "hf", format="hf")
    for model, max_tiles in ((toy_base, None), (tmp_path / "hf", 2), (run, None), (run, 2)):
        session, found = open_session(model, device="cpu", max_tiles=max_tiles), of(model, max_tiles=max_tiles)
        assert found.lengths == session.lengths and found.preprocessing["template"] == session.model.template
        assert found.preprocessing["max_tiles"] == session.tiling.max_tiles
    copy = shutil.copytree(toy_base, tmp_path / "copy")
    own, trained = of(toy_base).weights, of(run).weights
    assert of(copy).weights == own != trained != of(run / "iter_2.pth").weights
    for name in ("export_manifest.json", "README.md"):  # say where it came from
        (copy / name).write_text("{}")
    for name, tail in (("tokenizer_config.json", b"} "), ("model.safetensors", b"\1")):
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(kept.rstrip()[:-1] + tail)
        assert of(copy).weights != own
        (copy / name).write_bytes(kept)
        assert of(copy).weights == own


def test_what_cannot_be_opened_is_named(run, toy_base, tmp_path):
    for name in ("adapter/adapter_config.json", "llm/config.json", "weights.pth", "my.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model_type": "qwen2"}')
    (tmp_path / "empty").mkdir()
    for words, message in (
        ((tmp_path / "missing",), "model directory .*missing does not exist"),
        ((tmp_path / "empty",), "neither a model directory .it has no config.json. nor a work directory"),
        ((tmp_path / "llm",), "is not an official InternVL directory .model_type 'qwen2'"),
        ((tmp_path / "adapter",), "is a PEFT adapter; give the directory above it"),
        ((tmp_path / "weights.pth",), "is a file, which .*for weights their config first: CONFIG .*weights.pth"),
        (("finetune_lora",), "is a training config; give a checkpoint after it"),
        (("finetune_lorra", run / "iter_4.pth"), "did you mean finetune_lora"),
        ((tmp_path / "my.py", tmp_path / "iter_9.pth"), "iter_9.pth does not exist"),
        ((run, "iter_9.pth"), "iter_9.pth does not exist"),
        ((toy_base, run / "iter_4.pth"), "is a model directory, which takes no checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            find_source(*words)
    save_pth(make_model(toy_base), tmp_path / "iter_1.pth", record=None)
    for model, template, message in (
        (tmp_path / "iter_1.pth", None, "iter_1.pth holds no record of its run"),
        (toy_base, "Hermes-2", "has one template of its own"),
        (run, "internvl2_5", "--template internvl2_5: trained with Hermes-2"),
    ):
        with pytest.raises(ValueError, match=message):
            open_session(model, template=template, device="cpu")
