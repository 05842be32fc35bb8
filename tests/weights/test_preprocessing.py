"""What was trained is what ships: tile limits and template go from the dataset to checkpoint, export and chat."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from tests.weights.training import SETTINGS, make_model, save_pth
from xtuner_plugins.datasets import MultimodalDataset, lock
from xtuner_plugins.export.adapters import export_adapter
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.hub.conversation import get_conv_template
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy.tokenizer import CHAT_TEMPLATE
from xtuner_plugins.weights import preprocessing
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json

TRAINED = dict(max_tiles=3, template="Hermes-2")
RULE = {"min_dynamic_patch": 2, "max_dynamic_patch": 3, "use_thumbnail": False, "template": "Hermes-2"}


def dataset(base, folder, **settings):
    record = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}
    (folder / "data.jsonl").write_text(json.dumps(record) + "\n")
    return MultimodalDataset(str(base), data_paths=str(folder / "data.jsonl"), image_folders=str(folder), **settings)


@pytest.fixture
def trained(toy_base, tmp_path):
    """A lock with settings of its own."""
    found = lock.describe(dataset(toy_base, tmp_path, **TRAINED), IMAGENET_MEAN, IMAGENET_STD)
    found["datasets"][0]["min_tiles"] = 2
    return found


@pytest.fixture
def save(tmp_path):
    """Saves a checkpoint over a base, with a lock."""
    path = tmp_path / "iter_1.pth"
    return lambda base, lock, **settings: save_pth(make_model(base, **settings), path, preprocessing=lock)


def test_all_files_of_an_export_say_what_was_trained(trained, save, toy_base, tmp_path):
    """And an adapter's; the hf form keeps it and brings it back, as far as it has fields."""
    trained["datasets"][0]["use_thumbnail"] = False
    out, checkpoint = tmp_path / "out", save(toy_base, trained)
    export(None, checkpoint, out)
    assert read_json(out / "config.json").items() >= {"dynamic_image_size": True, **RULE}.items()
    written = read_json(out / preprocessing.FILE)
    assert written.items() >= trained.items() and written["exported"]["max_tiles"] == 3
    live, session = (open_session(path, device="cpu") for path in (checkpoint, out))
    assert live.tiling == session.tiling and session.tiling.max_tiles == 3
    assert live.model.template == session.model.template == "Hermes-2"

    trained["datasets"][0] |= {"use_thumbnail": True, "system_message": None}
    rule = {**RULE, "use_thumbnail": True, "no_system_message": True}
    export(None, save(toy_base, trained), tmp_path / "hf", format="hf")
    convert(tmp_path / "hf", tmp_path / "back", format="official")
    assert read_json(tmp_path / "back" / "config.json").items() >= rule.items()
    export_adapter(None, save(toy_base, trained, **SETTINGS["lora"]), tmp_path / "adapter")
    export(None, tmp_path / "adapter", tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json").items() >= rule.items()
    own = preprocessing.system_fields(get_conv_template("internvl2_5", system_message="A"), rule)
    assert own == {"system_message": "A", "no_system_message": False}


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
        data = dataset(base, tmp_path)
        export(None, save(base, lock.describe(data, IMAGENET_MEAN, IMAGENET_STD)), out)
        asked, options = [{"role": "user", "content": "Q?"}], dict(add_generation_prompt=True, return_dict=False)
        prompt = AutoTokenizer.from_pretrained(out).apply_chat_template(asked, **options)
        assert prompt == data[0]["input_ids"][: int((data[0]["labels"] == -100).int().argmin())].tolist()
        assert (out / "chat_template.jinja").is_file() == (form == "hf")  # processors read it
        assert not (out / "chat_template.json").exists()


def test_a_mixture_needs_a_choice(trained, refused):
    usual = {**trained["datasets"][0], "template": "internvl2_5", "use_thumbnail": True, "min_tiles": 1}
    usual["system_message"] = get_conv_template("internvl2_5").system_message
    names = {"a": {"max_tiles": 4, "use_thumbnail": False}, "a2": {"max_tiles": 2}, "b": trained["datasets"][0]}
    trained["datasets"] = [{**usual, **own, "name": name} for name, own in names.items()]
    gray = {**trained, "image_mean": [0.5, 0.5, 0.5]}
    for choice, words in (
        ({}, r"several templates \(Hermes-2 \(b\), internvl2_5 \(a\), .*--template"),
        ({"template": "phi3-chat"}, r"--template phi3-chat: trained with Hermes-2 \(b\), internvl2_5 \(a\), .* only"),
        ({"template": "internvl2_5", "max_tiles": 3}, "--max-tiles 3: trained with 1 to 2 tiles.* and 1 to 4 tiles"),
    ):
        refused(words, preprocessing.choose, trained, **choice)
    refused(r"image mean \[0.5, 0.5, 0.5\].*preprocessor_config", preprocessing.choose, gray)
    chosen, note = preprocessing.choose(trained, template="internvl2_5")
    assert (chosen.max_tiles, chosen.use_thumbnail) == (4, False)
    assert "the one with most: 1 to 4 tiles without thumbnail" in note
    chosen, note = preprocessing.choose(trained, template="internvl2_5", max_tiles=2)
    assert chosen.max_tiles == 2 and note is None


def test_what_says_nothing_or_was_made_otherwise(trained, save, toy_base, tmp_path, caplog, refused):
    """Another Pillow is told. Other token ids were given where a tokenizer writes a space before texts."""
    done, none = export(None, save(toy_base, None), tmp_path / "base"), tmp_path / "none"
    assert "doesn't say how images and text were prepared" in done["notes"][0]
    refused("names none to choose from", export, None, tmp_path / "iter_1.pth", none, max_tiles=2, error=ValueError)
    for datasets in ("x", [], [{}]):
        refused("a.pth: its preprocessing holds", preprocessing.checked, {"datasets": datasets}, None, "a.pth")

    spaced, out = shutil.copytree(toy_base, tmp_path / "spaced"), tmp_path / "out"
    state = read_json(spaced / "tokenizer.json")
    write_json(spaced / "tokenizer.json", {**state, "normalizer": {"type": "Prepend", "prepend": " "}})
    export(None, save(spaced, {**trained, "resize_rule": "another", "pillow_version": "9.9"}), out)
    open_session(out, device="cpu")
    assert "trained with Pillow 9.9" in caplog.text

    (out / "export_manifest.json").unlink()
    write_json(out / preprocessing.FILE, {**read_json(out / preprocessing.FILE), "token_rules": 1})
    del trained["token_rules"]  # before rule 2 there was none
    save(spaced, trained)
    for step in (
        lambda: export(None, tmp_path / "iter_1.pth", none),
        lambda: convert(out, none, format="hf"),
        lambda: open_session(out, device="cpu"),
    ):
        refused("trained by an older version.*or train anew", step, error=ValueError)
    assert not none.exists()
    tokenizer = load_tokenizer(toy_base)
    preprocessing.checked(trained, tokenizer, "a.pth")
    trained["datasets"][0]["template"] = "vicuna_v1.1"  # whose answers had no space in front
    refused("a.pth was trained by an older version", preprocessing.checked, trained, tokenizer, "a.pth")
