"""XTuner's own InternVL configs, imported: every value is what XTuner would train with, and the rest is named."""

import json
import os
from pathlib import Path

import pytest
from xtuner.configs import cfgs_name_path

from tests.cli.xtuner_cases import INTERNVL, LORA, absolute, assert_same_run, edited, written
from tests.engine.parallel_case import base_and_data, write_dataset
from xtuner_plugins.cli.from_xtuner import import_config
from xtuner_plugins.engine.config_check import check_config
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.settings import ConfigError, labels_of, load_config, read_config

HUBS = {base.hub: base for base in BASES.values() if base.hub}


def test_there_are_21_of_them():
    assert len(INTERNVL) == 21


@pytest.mark.parametrize("name", INTERNVL)
def test_every_value_is_xtuners(name, tmp_path):
    theirs = read_config(cfgs_name_path[name])._to_lazy_dict()
    imported, ours = written(name, tmp_path)
    model = theirs["model"]
    base = HUBS[model["model_path"]]
    assert ours["model"]["base"] == ours["train_dataloader"]["dataset"]["base"] == os.path.abspath(base.path)
    for key in ("freeze_visual_encoder", "freeze_llm"):
        assert ours["model"].get(key, True) == model[key]
    assert not ours["model"].get("freeze_projector")  # XTuner always trains it
    lora, given = ours["model"].get("llm_lora"), model.get("llm_lora")
    assert (lora is None) == (given is None) == ("lora" not in name)
    assert lora is None or [lora.get(key) for key in LORA] == [given[key] for key in LORA]
    assert "visual_encoder_lora" not in ours["model"] and "visual_encoder_quantization" not in ours["model"]
    assert ("llm_quantization" in ours["model"]) == bool(model.get("quantization_llm")) == ("qlora" in name)
    if "qlora" in name:
        quantization = ours["model"]["llm_quantization"]
        assert quantization["load_in_4bit"] and quantization["bnb_4bit_use_double_quant"]
        assert quantization["bnb_4bit_quant_type"] == "nf4"  # as XTuner's InternVL_V1_5 sets it

    dataset, given = ours["train_dataloader"]["dataset"], theirs["train_dataloader"]["dataset"]
    assert dataset["data_paths"] == absolute(given["data_paths"])
    assert dataset["image_folders"] == absolute(given["image_folders"])
    assert dataset["max_length"] == given["max_length"]
    assert {"internlm2_chat": "internlm2-chat", "phi3_chat": "phi3-chat"}[str(given["template"])] == base.template
    assert "template" not in dataset and "repeat_times" not in dataset
    assert_same_run(ours, theirs)

    method = "qlora" if "qlora" in name else "lora" if "lora" in name else "full"
    assert imported.parent == f"finetune_{method}"
    labels = labels_of(tmp_path / "mine.py")
    assert dataset["data_paths"][0] in labels["data"] and labels["launch"] == imported.launch
    notes = "\n".join(imported.notes)
    for word in ("'float16'", "'dynamic'", "LengthGroupedSampler", "DatasetInfoHook", "save_optimizer", "hf download"):
        assert notes.count(word) == 1, word


def test_the_result_passes_the_check_on_a_tiny_base(toy_base, tmp_path):
    data, images = write_dataset(tmp_path / "data", num_samples=8)
    path = edited(
        tmp_path,
        ('data_root + "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"', f'["{data}", "{data}"]'),
        ('data_root + "llava_images"', f'["{images}", "{images}"]'),
        ("    max_length=max_length,", "    max_length=max_length,\n    repeat_times=[2, 0.5],"),
    )
    imported, ours = written(path, tmp_path, base=str(toy_base))
    assert not any("hf download" in note for note in imported.notes)
    dataset = ours["train_dataloader"]["dataset"]
    assert dataset["repeat_times"] == [2, 0.5] and dataset["data_paths"] == [str(data)] * 2
    cfg = load_config(str(tmp_path / "mine.py"), base_and_data(toy_base, (data, images)))
    cfg.train_dataloader.dataset.data_paths *= 2
    cfg.train_dataloader.dataset.image_folders *= 2
    check_config(cfg)


def test_an_unknown_model_takes_in_the_same_methods(tmp_path):
    edit = ('"OpenGVLab/InternVL2-8B"', '"me/mine"')
    assert import_config(str(edited(tmp_path, edit)), tmp_path / "o.py").parent == "finetune_lora"
    for tuning in ("", "_qlora"):
        theirs = Path(cfgs_name_path[f"internvl_v2_internlm2_5_8b{tuning}_finetune"])
        (tmp_path / "theirs.py").write_text(theirs.read_text().replace(*edit))
        parent = import_config(str(tmp_path / "theirs.py"), tmp_path / "o.py").parent
        assert parent == f"finetune{tuning or '_full'}"


@pytest.mark.parametrize("fields, tiles", [({"dynamic_image_size": True, "max_dynamic_patch": 6}, 6), ({}, 1)])
def test_tiles_of_an_unknown_base_are_its_own_or_a_note(fields, tiles, tmp_path):
    path = edited(tmp_path, ('"OpenGVLab/InternVL2-8B"', '"me/mine"'))
    imported = import_config(str(path), tmp_path / "o.py")
    assert sum(note.startswith("max_tiles=12: no table knows mine") for note in imported.notes) == 1
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(fields))
    imported = import_config(str(path), tmp_path / "o.py", str(tmp_path / "base"))
    assert not any("max_tiles" in note for note in imported.notes)
    (tmp_path / "o.py").write_text(imported.text)
    assert read_config(str(tmp_path / "o.py")).train_dataloader.dataset.max_tiles == tiles


def test_files_and_folders_go_together(tmp_path):
    path = edited(tmp_path, ('data_root + "llava_images"', '["a", "b"]'))
    with pytest.raises(ConfigError, match="1 data_paths, 2 image_folders, 1 repeat_times; give one for each file"):
        import_config(str(path), tmp_path / "out.py")
