"""One way to open a model: a directory, or what a training run left, which answers as its export does."""

import json
import shutil

import pytest
import torch

from tests.weights.training import SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.inference.opening import Source, find_source, open_session
from xtuner_plugins.settings import ConfigError
from xtuner_plugins.weights import preprocessing
from xtuner_plugins.weights.errors import CheckpointError

RULES = {"min_tiles": 1, "max_tiles": 3, "use_thumbnail": True}
LOCK = {
    "tile_size": 112,
    "datasets": [{"name": "train", "template": "Hermes-2", **RULES}],
    "tile_sharing": "need",
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}


def answer(session):
    return session.answers([("Hello", [])], max_new_tokens=4)


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    """A work directory with two checkpoints of LoRA adapters; the newer was trained with tile limits of its own."""
    folder = tmp_path_factory.mktemp("run")
    model = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(folder / "mine.py", toy_base, **SETTINGS["both_loras"])
    newest = save_pth(model, folder / "iter_4.pth", config)
    content = torch.load(newest, weights_only=False)
    content["meta"]["iter"] = 4
    torch.save(content, folder / "iter_2.pth")
    torch.save({**content, preprocessing.KEY: LOCK}, newest)
    (folder / "last_checkpoint").write_text(str(newest))
    return folder


def weights(session):
    return session.model.state_dict()


def test_a_checkpoint_answers_as_its_export(run, tmp_path):
    export(run / "mine.py", run / "iter_4.pth", tmp_path / "out")
    exported = open_session(tmp_path / "out", device="cpu")
    session = open_session(run / "mine.py", run / "iter_4.pth", device="cpu")
    assert weights(session).keys() == weights(exported).keys()
    assert all(torch.equal(tensor, weights(exported)[name]) for name, tensor in weights(session).items())
    assert session.tiling == exported.tiling and session.tiling.max_tiles == 3
    assert session.tile_sharing == exported.tile_sharing == "need"
    assert session.model.template == exported.model.template == "Hermes-2"
    assert session.model.stop_token_ids() == exported.model.stop_token_ids() != []
    assert answer(session) == answer(exported)


def test_a_checkpoint_stops_where_its_export_does(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "base")
    written = tmp_path / "base" / "generation_config.json"
    for number, (named, template) in enumerate([(None, None), (922, None), ([922, 923], "internlm2-chat")]):
        written.write_text(json.dumps({} if named is None else {"eos_token_id": named}))
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoint = save_pth(make_model(tmp_path / "base"), folder / "iter_1.pth")
        if template:
            content = torch.load(checkpoint, weights_only=False)
            datasets = [{**LOCK["datasets"][0], "template": template}]
            torch.save({**content, preprocessing.KEY: {**LOCK, "datasets": datasets}}, checkpoint)
        config = write_config(folder / "mine.py", tmp_path / "base")
        export(config, checkpoint, folder / "out")
        exported, live = open_session(folder / "out", device="cpu"), open_session(config, checkpoint, device="cpu")
        assert live.model.template == exported.model.template == (template or "internvl2_5")
        assert live.model.stop_token_ids() == exported.model.stop_token_ids() != []


def test_limits_are_those_of_the_session(run):
    session = open_session(run, max_tiles=2, dtype="bfloat16", device="cpu")
    assert session.tiling.max_tiles == 2 and session.model.dtype == torch.bfloat16


def test_a_work_directory(run):
    assert find_source(run) == find_source(run / "iter_4.pth") == Source(None, run / "iter_4.pth")
    for named in ("iter_2.pth", run / "iter_2.pth"):
        assert find_source(run, named) == Source(None, run / "iter_2.pth")
    assert find_source(run / "mine.py", run / "iter_2.pth") == Source(run / "mine.py", run / "iter_2.pth")


def test_no_python_of_a_work_directory_runs(run, tmp_path):
    """Settings come from the checkpoint as data; an adapter that was written from it opens likewise."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/mine.py").write_text("raise SystemExit('it ran')")
    answers = [answer(open_session(path, device="cpu")) for path in (tmp_path / "run", run / "iter_4.pth")]
    export_adapter(None, run / "iter_4.pth", tmp_path / "adapter")
    adapter = open_session(tmp_path / "adapter", device="cpu")
    assert adapter.tiling.max_tiles == 3 and adapter.model.template == "Hermes-2"
    answers.append(answer(adapter))
    assert answers[0] == answers[1] == answers[2]


def test_a_checkpoint_without_a_record_is_refused(toy_base, tmp_path):
    save_pth(make_model(toy_base), tmp_path / "iter_1.pth", record=None)
    with pytest.raises(CheckpointError, match="iter_1.pth holds no record of its run"):
        open_session(tmp_path / "iter_1.pth", device="cpu")


def test_directories_of_every_format(toy_base, tmp_path):
    convert(toy_base, tmp_path / "hf", format="hf")
    official, other = (open_session(path, device="cpu") for path in (toy_base, tmp_path / "hf"))
    assert answer(official) == answer(other)


@pytest.fixture(scope="module")
def odd(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, files in {
        "adapter": {"adapter_config.json": "{}"},
        "llm": {"config.json": '{"model_type": "qwen2"}'},
        "empty": {},
    }.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
    for name in ("model.gguf", "photo.jpg", "weights.pth"):
        (folder / name).write_text("")
    shutil.copy(run / "mine.py", folder / "mine.py")
    return folder


REFUSED = [
    (("{odd}/missing",), "model directory .*missing does not exist"),
    (("{odd}/empty",), "neither a model directory .it has no config.json. nor a work directory"),
    (("{odd}/llm",), "is not an official InternVL directory .model_type 'qwen2'"),
    (("{odd}/adapter",), "is a PEFT adapter; give the directory above it"),
    (("{odd}/weights.pth",), "holds weights alone; give its training config first"),
    (("{odd}/model.gguf",), "is for llama.cpp"),
    (("{odd}/photo.jpg",), "is a file, not a model directory"),
    (("{odd}/mine.py",), "is a training config; give a checkpoint after it"),
    (("finetune_lora",), "is a training config; give a checkpoint after it"),
    (("{odd}/mine.py", "{odd}/iter_9.pth"), "iter_9.pth does not exist"),
    (("{run}", "iter_9.pth"), "iter_9.pth does not exist"),
    (("{base}", "{run}/iter_4.pth"), "is a model directory, which takes no checkpoint"),
]


def test_what_cannot_be_opened_is_named(odd, run, toy_base):
    for words, message in REFUSED:
        with pytest.raises(CheckpointError, match=message):
            find_source(*(word.format(odd=odd, run=run, base=toy_base) for word in words))
    with pytest.raises(ConfigError, match="did you mean finetune_lora"):
        find_source("finetune_lorra", run / "iter_4.pth")


def test_a_template_is_chosen_for_checkpoints_only(toy_base, run):
    with pytest.raises(ValueError, match="has one template of its own"):
        open_session(toy_base, template="Hermes-2")
    with pytest.raises(ValueError, match="--template internvl2_5: trained with Hermes-2"):
        open_session(run, template="internvl2_5", device="cpu")
