"""What was trained is what ships: tile limits and template go from the dataset to checkpoint, export and chat."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.engine.forked import train_forked
from tests.engine.parallel_case import edited_config, write_dataset
from tests.weights.training import SETTINGS, load_trained, make_model, save_pth
from xtuner_plugins.datasets import MultimodalDataset, lock
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import convert, export, prepare
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.toy.tokenizer import CHAT_TEMPLATE
from xtuner_plugins.weights import preprocessing
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

TRAINED = dict(max_tiles=3, template="Hermes-2")


@pytest.mark.slow
def test_a_shipped_recipe_with_other_tiles_and_template(run_tool, toy_base, tmp_path):
    """Trained under ZeRO, exported and verified by the command; an edited config doesn't resume."""
    data, images = write_dataset(tmp_path / "data", text_only=lambda index: False)
    settings = dict(base=str(toy_base), data_paths=[str(data)], image_folders=[str(images)], max_tiles=3)
    config = Path(edited_config(tmp_path, "toy_finetune_full", template="Hermes-2", **settings))
    case = dict(config=str(config), deepspeed="deepspeed_zero2")
    trained = train_forked(tmp_path / "run", toy_base, (data, images), **case)
    assert trained.ok, trained.output[-3000:]
    checkpoint = tmp_path / "run" / "iter_4.pth"
    done = run_tool("tools/convert_to_official.py", config, checkpoint, tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stderr
    fields = read_json(tmp_path / "out" / "config.json")
    assert (fields["max_dynamic_patch"], fields["template"]) == (3, "Hermes-2")
    assert read_json(tmp_path / "out" / preprocessing.FILE)["datasets"][0]["max_tiles"] == 3

    config.write_text("".join(line for line in config.open() if "Hermes-2" not in line))  # edited after the training
    again = train_forked(tmp_path / "again", toy_base, (data, images), extra=("--resume", str(checkpoint)), **case)
    assert again.codes == [2] and "Hermes-2" in again.errors[0], again.errors


def describe(base, folder, settings=None, **shared):
    """The lock of a dataset of one file per entry of `settings`."""
    data, images = folder / "data.jsonl", folder
    record = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}
    data.write_text(json.dumps(record) + "\n")
    files = len(settings or [None])
    dataset = MultimodalDataset(str(base), [str(data)] * files, str(images), dataset_settings=settings, **shared)
    return lock.describe(dataset, IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture(scope="module")
def model(toy_base):
    return make_model(toy_base)


@pytest.fixture
def save(model, tmp_path):
    """Saves a checkpoint, of the toy base unless told otherwise, with a lock."""
    return lambda lock, model=model, name="iter_1.pth": save_pth(model, tmp_path / name, preprocessing=lock)


def test_all_files_of_an_export_say_what_was_trained(save, toy_base, tmp_path):
    lock = describe(toy_base, tmp_path, **TRAINED)
    lock["datasets"][0] |= {"min_tiles": 2, "use_thumbnail": False}
    checkpoint = save(lock)
    export(None, checkpoint, tmp_path / "out")
    fields = read_json(tmp_path / "out" / "config.json")
    rule = {"dynamic_image_size": True, "min_dynamic_patch": 2, "max_dynamic_patch": 3, "use_thumbnail": False}
    assert {key: fields[key] for key in rule} == rule and fields["template"] == "Hermes-2"
    written = read_json(tmp_path / "out" / preprocessing.FILE)
    assert {key: written[key] for key in lock} == lock and written["exported"]["max_tiles"] == 3
    session = ChatSession.from_pretrained(tmp_path / "out", device="cpu")
    live = load_trained(None, checkpoint, dtype=torch.float32)  # what evaluation asks
    assert ChatSession(live, session.tokenizer).tiling == session.tiling and session.tiling.max_tiles == 3
    assert live.template == session.model.template == "Hermes-2"
    verify(prepare(None, checkpoint), tmp_path / "out")


def test_the_hf_form_keeps_it_and_brings_it_back(save, toy_base, tmp_path):
    """From an official base and, trained again, from an hf one; an adapter has it, too."""
    lock = describe(toy_base, tmp_path, **TRAINED)
    export(None, save(lock), tmp_path / "hf", format="hf")
    session = ChatSession.from_pretrained(tmp_path / "hf", device="cpu")
    assert session.tiling.max_tiles == 3 and session.model.template == "Hermes-2"
    convert(tmp_path / "hf", tmp_path / "back", format="official")
    fields = read_json(tmp_path / "back" / "config.json")
    assert (fields["max_dynamic_patch"], fields["template"]) == (3, "Hermes-2")
    convert(toy_base, tmp_path / "base", format="hf")
    lora = make_model(tmp_path / "base", **SETTINGS["lora"])
    export_adapter(None, save(lock, lora), tmp_path / "adapter")
    export(None, tmp_path / "adapter", tmp_path / "out")
    assert read_json(tmp_path / "out" / "preprocessor_config.json")["max_patches"] == 3
    assert ChatSession.from_pretrained(tmp_path / "out", device="cpu").model.template == "Hermes-2"


def test_programs_prompt_as_in_training_whatever_the_base_prompts(save, toy_base, tmp_path):
    """The base has the stock template of its language model, in each of the files where programs look for one."""
    for form in ("official", "hf"):
        base, out = tmp_path / form, tmp_path / f"out-{form}"
        convert(toy_base, base, format=form)
        (base / "export_manifest.json").unlink()
        write_json(base / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
        (base / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        stock = {**read_json(base / "tokenizer_config.json"), "chat_template": CHAT_TEMPLATE}
        write_json(base / "tokenizer_config.json", stock)
        export(None, save(describe(base, tmp_path), make_model(base)), out)
        asked, options = [{"role": "user", "content": "Q?"}], dict(add_generation_prompt=True, return_dict=False)
        prompt = AutoTokenizer.from_pretrained(out).apply_chat_template(asked, **options)
        data = dict(data_paths=str(tmp_path / "data.jsonl"), image_folders=str(tmp_path))
        sample = MultimodalDataset(str(base), **data)[0]
        assert prompt == sample["input_ids"][: int((sample["labels"] == -100).int().argmin())].tolist()
        assert (out / "chat_template.jinja").is_file() == (form == "hf")  # processors read it
        assert not (out / "chat_template.json").exists()


def test_a_mixture_needs_a_choice(save, toy_base, tmp_path):
    own = [{"name": "a", "max_tiles": 4}, {"name": "a2", "max_tiles": 2}, {"name": "b", **TRAINED}]
    lock = describe(toy_base, tmp_path, own)
    lock["datasets"][0]["use_thumbnail"] = False
    checkpoint = save(lock)
    for choice, words in (
        ({}, r"several templates \(Hermes-2: b; internvl2_5: a, a2\).*--template"),
        ({"template": "phi3-chat"}, "--template phi3-chat: trained with Hermes-2: b; internvl2_5: a, a2 only"),
        ({"template": "internvl2_5", "max_tiles": 3}, "--max-tiles 3: trained with 1 to 2 tiles.* and 1 to 4 tiles"),
    ):
        with pytest.raises(ValueError, match=words):
            export(None, checkpoint, tmp_path / "out", **choice)
    done = export(None, checkpoint, tmp_path / "out", template="internvl2_5")
    assert "the one with most: 1 to 4 tiles without thumbnail" in done["notes"][0]
    assert "serving engines give each of them 4" in done["notes"][1]
    fields = read_json(tmp_path / "out" / "config.json")
    assert (fields["max_dynamic_patch"], fields["use_thumbnail"]) == (4, False)
    done = export(None, checkpoint, tmp_path / "two", template="internvl2_5", max_tiles=2)
    assert not any("the one with most" in note for note in done["notes"])
    assert read_json(tmp_path / "two" / "config.json")["max_dynamic_patch"] == 2


def test_what_says_nothing_or_does_not_fit(save, toy_base, tmp_path):
    done = export(None, save(None), tmp_path / "base")
    assert "doesn't say how images and text were prepared" in done["notes"][0]
    for change, words in (
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image mean \[0.5, 0.5, 0.5\].*--image-mean"),
        ({"datasets": "x"}, "preprocessing that can't be read"),
        ({"datasets": []}, "preprocessing that can't be read"),
        (None, "nothing to choose with --template"),
    ):
        checkpoint = save(None if change is None else {**describe(toy_base, tmp_path), **change})
        with pytest.raises(ValueError, match=words):
            export(None, checkpoint, tmp_path / "out", max_tiles=None if change else 2)
    assert not (tmp_path / "out").exists()


def test_a_training_with_other_token_ids_does_not_go_on(save, toy_base, tmp_path):
    """A lock of before rule 2 is refused with a tokenizer that writes a space before texts, and with no other."""
    base = shutil.copytree(toy_base, tmp_path / "base")
    state = read_json(base / "tokenizer.json")
    write_json(base / "tokenizer.json", {**state, "normalizer": {"type": "Prepend", "prepend": " "}})
    lock = describe(base, tmp_path)
    export(None, save(lock, make_model(base)), tmp_path / "old")
    exported = read_json(tmp_path / "old" / preprocessing.FILE)
    assert exported.pop("token_rules") == lock.pop("token_rules") == 2
    (tmp_path / "old" / "export_manifest.json").unlink()
    write_json(tmp_path / "old" / preprocessing.FILE, exported)
    old = save(lock, make_model(base))
    for step in (
        lambda: export(None, old, tmp_path / "no"),
        lambda: convert(tmp_path / "old", tmp_path / "no", format="hf"),
        lambda: ChatSession.from_pretrained(tmp_path / "old", device="cpu"),
    ):
        with pytest.raises(ValueError, match="trained by an older version.*or train anew"):
            step()
    assert not (tmp_path / "no").exists()
    export(None, save(lock), tmp_path / "usual")


def test_an_edited_config_is_refused_and_another_pillow_told(save, toy_base, tmp_path, caplog):
    lock = {**describe(toy_base, tmp_path, **TRAINED), "resize_rule": "another", "pillow_version": "9.9"}
    export(None, save(lock), tmp_path / "out")
    fields = read_json(tmp_path / "out" / "config.json")
    write_json(tmp_path / "out" / "config.json", {**fields, "max_dynamic_patch": 9})
    with pytest.raises(ValueError, match="not as it was exported: config.json changed"):
        ChatSession.from_pretrained(tmp_path / "out", device="cpu")
    (tmp_path / "out" / "export_manifest.json").unlink()
    ChatSession.from_pretrained(tmp_path / "out", device="cpu")
    assert "trained with Pillow 9.9" in caplog.text
