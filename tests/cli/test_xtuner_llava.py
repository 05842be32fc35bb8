"""XTuner's own LLaVA configs, imported: every value is what XTuner would train with, or one line refuses it."""

from pathlib import Path

import pytest
from xtuner.configs import cfgs_name_path

from tests.cli.xtuner_cases import LORA, absolute, assert_same_run, edited, written
from xtuner_plugins.cli.from_xtuner import import_config
from xtuner_plugins.settings import ConfigError, labels_of, read_config

SHIPPED = sorted(name for name, path in cfgs_name_path.items() if "/llava/" in path and not name.startswith("convert_"))
REFUSED = [name for name in SHIPPED if "internlm_chat" in name]
TAKEN = [name for name in SHIPPED if name not in REFUSED]
TEMPLATES = {"internlm2": "internlm2-chat", "llama3": "llama3-chat", "phi3": "phi3-chat"}
TEMPLATES |= {"vicuna": "vicuna_v1.1", "v15": "vicuna_v1.1"}
PRETRAIN = "llava_llama3_8b_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain"
QLORA = "llava_internlm2_chat_7b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune"
TOKENS = (336 // 14) ** 2


def test_all_33_are_taken_or_refused():
    assert (len(TAKEN), len(REFUSED)) == (31, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_without_template_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(ConfigError) as error:
        import_config(name, tmp_path / "out.py")
    llm = read_config(cfgs_name_path[name])._to_lazy_dict()["model"]["llm"]["pretrained_model_name_or_path"]
    assert f"{llm} is prompted with internlm_chat, which no template in" in str(error.value)
    assert "take an LLM with internlm2_chat, llama3_chat, phi3_chat, vicuna" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TAKEN)
def test_every_value_is_xtuners(name, tmp_path):
    theirs = read_config(cfgs_name_path[name])._to_lazy_dict()
    imported, ours = written(name, tmp_path)
    model, given = ours["model"], theirs["model"]
    assert_same_run(ours, theirs)
    for key in ("freeze_visual_encoder", "freeze_llm"):
        assert model.get(key, True) == given[key]
    assert not model.get("freeze_projector")  # XTuner always trains it
    for key in ("llm_lora", "visual_encoder_lora"):
        assert (key in model) == (key in given)
        if key in given:
            assert [model[key].get(name) for name in LORA] == [given[key].get(name) for name in LORA]
    assert ("llm_quantization" in model) == ("quantization_config" in given["llm"])
    assert "visual_encoder_quantization" not in model

    dataset, their_data = ours["train_dataloader"]["dataset"], theirs["train_dataloader"]["dataset"]
    parts = their_data.get("datasets", [their_data])
    parts = [part for part in parts if str(part["type"]) == "LLaVADataset"]  # others are noted
    assert dataset["data_paths"] == absolute(*(part["data_path"] for part in parts))
    assert dataset["image_folders"] == absolute(*(part["image_folder"] for part in parts))
    assert [dataset["max_length"]] * len(parts) == [part["max_length"] + TOKENS for part in parts]
    assert dataset["template"] == TEMPLATES[name.split("_")[1]]
    assert dataset["max_tiles"] == 1 and "repeat_times" not in dataset

    notes = "\n".join(imported.notes)
    padded = parts[0]["pad_image_to_square"]
    vicuna = ["template vicuna: "] if dataset["template"] == "vicuna_v1.1" else []
    always = (f"pad_image_to_square={padded}: XTuner", "DatasetInfoHook", "EvaluateChatHook", "system prompt")
    for words in (*vicuna, *always):
        assert notes.count(words) == 1, words
    assert f"pad_image_to_square={padded}: XTuner" in imported.text
    gpus = int((name.partition("_gpu")[2] or "8")[0])
    assert imported.launch.startswith("NPROC_PER_NODE=8 " if gpus == 8 else "python ")


@pytest.mark.parametrize("name", TAKEN)
def test_a_leaf_starts_from_its_parts_or_from_the_exported_stage_1(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = read_config(cfgs_name_path[name])._to_lazy_dict()["model"]
    imported, ours = written(name, tmp_path)
    starts_from = labels_of(tmp_path / "mine.py")["starts from"]
    base = ours["model"]["base"]
    if "pretrained_pth" in given:
        stem = Path(given["pretrained_pth"]).parent.name
        assert base == str(tmp_path / "exports" / stem)
        assert f"python tools/convert_to_official.py {stem}.py CHECKPOINT {base}" in starts_from
        if stem in cfgs_name_path:  # it can be imported too
            assert written(stem, tmp_path)[1]["model"]["base"] == str(tmp_path / "models" / Path(base_llm(given)).name)
    else:
        assert base == str(tmp_path / "models" / base_llm(given))
        parts = f"--vision openai/clip-vit-large-patch14-336 --llm {given['llm']['pretrained_model_name_or_path']}"
        assert (
            f"build_base_model.py {parts} --template {ours['train_dataloader']['dataset']['template']}" in starts_from
        )
    assert written(name, tmp_path, base="given")[1]["model"]["base"] == str(tmp_path / "given")


def base_llm(model):
    return "LLaVA-" + Path(model["llm"]["pretrained_model_name_or_path"]).name


EDITS = [
    (PRETRAIN, ("type=LLaVAModel,", "type=LLaVAModel, visual_select_layer=-3,"), "--select-layer -3"),
    (PRETRAIN, ("max_length=max_length", "max_length=max_length, max_dataset_length=5"), "max_dataset_length=5 is not"),
    (PRETRAIN, ("type=LLaVAModel,", "type=LLaVAModel, max_position_embeddings=9,"), "max_position_embeddings=9 is not"),
    (
        PRETRAIN,
        ("meta-llama/Meta-Llama-3-8B-Instruct", "me/mine"),
        "model.llm me/mine: build_base_model.py says whether",
    ),
    (QLORA, ("bnb_4bit_use_double_quant=True", "bnb_4bit_use_double_quant=False"), "use_double_quant=False is not"),
]


@pytest.mark.parametrize("name, edit, note", EDITS, ids=[note for _, _, note in EDITS])
def test_what_a_user_changed_is_named(name, edit, note, tmp_path):
    plain = import_config(name, tmp_path / "mine.py")
    imported = import_config(str(edited(tmp_path, edit, name=name)), tmp_path / "mine.py")
    assert sum(note in line for line in imported.notes) == 1, imported.notes
    assert not any(note in line for line in plain.notes)


WRONG = [
    (
        PRETRAIN,
        ("type=LLaVAModel,", "type=LLaVAModel, projector_depth=3,"),
        "projector_depth=3; projectors here have 2",
    ),
    (
        PRETRAIN,
        ("openai/clip-vit-large-patch14-336", "me/tower"),
        "visual_encoder me/tower is not known here; use one of",
    ),
    (PRETRAIN, ("data_path=data_path,", ""), "a LLaVADataset without data_path"),
    (QLORA, ("load_in_4bit=True", "load_in_4bit=False"), "set load_in_4bit=True"),
    (QLORA, ("freeze_llm=True", "freeze_llm=False"), "4-bit weights don't train; set freeze_llm=True"),
]


@pytest.mark.parametrize("name, edit, message", WRONG, ids=[message for _, _, message in WRONG])
def test_what_no_leaf_can_say_is_refused(name, edit, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        import_config(str(edited(tmp_path, edit, name=name)), tmp_path / "mine.py")
