"""XTuner's own InternVL configs, imported: every value is what XTuner would train with, and the rest is named."""

import os
from pathlib import Path

import pytest
from xtuner.configs import cfgs_name_path

from tests.engine.parallel_case import base_and_data, write_dataset
from tests.tools.test_refusals import run
from xtuner_plugins.config_file import ConfigError, load_config, read_config
from xtuner_plugins.engine.config_check import check_config
from xtuner_plugins.leaf import Leaf
from xtuner_plugins.recipes.bases import BASES
from xtuner_plugins.recipes.from_xtuner import find_xtuner_config, import_config
from xtuner_plugins.recipes.table import RECIPES

SHIPPED = sorted(name for name in cfgs_name_path if name.startswith("internvl_v") and name.endswith("finetune"))
HUBS = {base.hub: base for base in BASES.values() if base.hub}
LORA = ("r", "lora_alpha", "lora_dropout", "target_modules")


def written(name, folder, **options):
    out = folder / "mine.py"
    imported = import_config(str(name), out, **options)
    out.write_text(imported.text, encoding="utf-8")
    return imported, load_config(str(out)).to_dict()


def edited(folder, *pairs):
    """XTuner's LoRA config of InternVL2-8B with other text."""
    text = Path(cfgs_name_path["internvl_v2_internlm2_5_8b_lora_finetune"]).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = folder / "theirs.py"
    path.write_text(text)
    return path


def absolute(path):
    return [os.path.abspath(path)]


def test_there_are_21_of_them():
    assert len(SHIPPED) == 21


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_is_xtuners(name, tmp_path):
    theirs = read_config(cfgs_name_path[name])._to_lazy_dict()
    imported, ours = written(name, tmp_path)
    model, loader, wrapper = theirs["model"], theirs["train_dataloader"], theirs["optim_wrapper"]
    base = HUBS[model["model_path"]]
    assert ours["model"]["base"] == ours["train_dataloader"]["dataset"]["base"] == os.path.abspath(base.path)
    for key in ("freeze_visual_encoder", "freeze_llm"):
        assert ours["model"][key] == model[key]
    assert ours["model"]["freeze_projector"] is False  # XTuner always trains it
    lora, given = ours["model"].get("llm_lora"), model.get("llm_lora")
    assert (lora is None) == (given is None) == ("lora" not in name)
    assert lora is None or [lora[key] for key in LORA] == [given[key] for key in LORA]
    assert "visual_encoder_lora" not in ours["model"] and "visual_encoder_quantization" not in ours["model"]
    assert ("llm_quantization" in ours["model"]) == bool(model.get("quantization_llm")) == ("qlora" in name)
    if "qlora" in name:
        quantization = ours["model"]["llm_quantization"]
        assert quantization["load_in_4bit"] and quantization["bnb_4bit_use_double_quant"]
        assert quantization["bnb_4bit_quant_type"] == "nf4"  # as XTuner's InternVL_V1_5 sets it

    dataset, given = ours["train_dataloader"]["dataset"], loader["dataset"]
    assert dataset["data_paths"] == absolute(given["data_paths"])
    assert dataset["image_folders"] == absolute(given["image_folders"])
    assert dataset["max_length"] == given["max_length"]
    assert {"internlm2_chat": "internlm2-chat", "phi3_chat": "phi3-chat"}[str(given["template"])] == base.template
    assert "template" not in dataset and "repeat_times" not in dataset
    for key in ("batch_size", "num_workers"):
        assert ours["train_dataloader"][key] == loader[key]

    for key in ("lr", "betas", "weight_decay"):
        assert ours["optim_wrapper"]["optimizer"][key] == wrapper["optimizer"][key]
    assert set(ours["optim_wrapper"]["paramwise_cfg"]["part_lr"].values()) == {None}
    assert ours["optim_wrapper"]["clip_grad"]["max_norm"] == wrapper["clip_grad"]["max_norm"]
    assert ours["optim_wrapper"]["accumulative_counts"] == wrapper["accumulative_counts"]
    assert ours["param_scheduler"]["warmup_ratio"] == theirs["warmup_ratio"]
    assert ours["train_cfg"]["max_epochs"] == theirs["train_cfg"]["max_epochs"]
    assert ours["train_cfg"]["max_iters"] is None
    for key in ("interval", "max_keep_ckpts", "by_epoch"):
        assert ours["default_hooks"]["checkpoint"][key] == theirs["default_hooks"]["checkpoint"][key]

    recipe = next(recipe for recipe in RECIPES if recipe.stem == imported.recipe)
    assert recipe.base == base.name
    assert (recipe.llm == "lora", bool(recipe.quantized)) == ("lora" in name, "qlora" in name)
    labels = Leaf.read(tmp_path / "mine.py").labels
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


EDITS = [
    (('"OpenGVLab/InternVL2-8B"', '"me/mine"'), "hf download me/mine", {"template": "internlm2-chat"}),
    (("weight_decay = 0.05", "weight_decay = 0.0"), None, {"weight_decay": 0.0}),
    (("type=LengthGroupedSampler", "type=DefaultSampler"), "sampler DefaultSampler: random order here", {}),
    (("max_norm=max_norm", "max_norm=0.5"), None, {"max_grad_norm": 0.5}),
    (("eta_min=0.0", "eta_min=1e-7"), "eta_min=1e-07 is not carried over", {}),
    (('dtype="float16"', 'dtype="bfloat16"'), "dtype='bfloat16' without loss scaling", {"dtype": "bfloat16"}),
    (("max_epochs=max_epochs)", "max_iters=1001)"), "max_iters=1001 counts", {"max_steps": 501, "max_epochs": None}),
    (("load_from = None", 'load_from = "a.pth"'), "load_from='a.pth' is not carried over", {}),
    (("seed=None", "seed=7"), "randomness={'seed': 7", {}),
    (("target_modules=None", 'target_modules=["wqkv"]'), "other names here", {"lora_targets": ["wqkv"]}),
    (("freeze_llm=True,", 'freeze_llm=True,\n    pretrained_pth="b.pth",'), "model.pretrained_pth='b.pth' is not", {}),
    (("type=optim_type", "type=SGD"), "optimizer SGD is not carried over", {}),
    (("max_length=max_length", "max_length=max_length, repeat_times=3"), None, {"repeat_times": [3]}),
    (
        ("freeze_llm=True,", "freeze_llm=True,\n    visual_encoder_lora=dict(type=LoraConfig, r=16, lora_alpha=256),"),
        "model.visual_encoder_lora: lora_rank=16 is not carried over",
        {"lora_rank": 128},
    ),
    (
        ("dataset=llava_dataset", "dataset=dict(type=ConcatDataset, datasets=[llava_dataset, dict(type=Own, n=1)])"),
        "dataset Own is not carried over: {'type': Own, 'n': 1}",
        {},
    ),
]


@pytest.mark.parametrize("edit, note, settings", EDITS, ids=[edit[1] for edit, _, _ in EDITS])
def test_what_a_user_changed_is_carried_over_or_named(edit, note, settings, tmp_path):
    imports = (
        "from torch.optim import AdamW",
        "from mmengine.dataset import DefaultSampler\nfrom mine import Own\nfrom torch.optim import SGD, AdamW\n"
        "from xtuner.dataset import ConcatDataset",
    )
    path = edited(tmp_path, imports, edit)
    plain = import_config(str(edited(tmp_path / "..", imports)), tmp_path / "mine.py")
    imported = import_config(str(path), tmp_path / "mine.py")
    assert note is None or sum(note in line for line in imported.notes) == 1, imported.notes
    assert note is None or not any(note in line for line in plain.notes)
    found = Leaf(tmp_path / "mine.py", imported.text).settings
    assert {name: found[name].value for name in settings} == settings


def test_an_unknown_model_starts_from_the_recipes_for_ones_own_data(tmp_path):
    edit = ('"OpenGVLab/InternVL2-8B"', '"me/mine"')
    assert import_config(str(edited(tmp_path, edit)), tmp_path / "o.py").recipe == "finetune_lora"
    for tuning in ("", "_qlora"):
        theirs = Path(cfgs_name_path[f"internvl_v2_internlm2_5_8b{tuning}_finetune"])
        (tmp_path / "theirs.py").write_text(theirs.read_text().replace(*edit))
        recipe = import_config(str(tmp_path / "theirs.py"), tmp_path / "o.py").recipe
        assert recipe == f"finetune{tuning or '_full'}"


def test_names_are_those_of_xtuner():
    for name in SHIPPED:
        assert find_xtuner_config(name) == cfgs_name_path[name]


REFUSED = [
    (["internvl_v2_internlm2_8b_lora_finetune"], "does not exist; did you mean internvl_v2_internlm2"),
    (["llava_v15_7b_pretrain", "out.py"], "trains LLaVAModel; XTuner's InternVL configs (InternVL_V1_5) are read"),
    (["finetune_lora.py"], "config finetune_lora.py does not exist"),
    (["internvl_v2_internlm2_2b_finetune", "out.txt"], "a config is a Python file; name it out.py"),
]


@pytest.mark.parametrize("words, message", REFUSED, ids=[words[-1] for words, _ in REFUSED])
def test_wrong_inputs_are_refused_in_one_line(words, message, tmp_path):
    status, lines, imported = run("import_xtuner_config.py", *words, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert imported == [] and list(tmp_path.iterdir()) == []


def test_the_tool_writes_names_and_replaces_nothing(tmp_path):
    name = "internvl_v2_phi3_4b_qlora_finetune"
    status, lines, imported = run("import_xtuner_config.py", name, cwd=tmp_path)
    assert (status, imported) == (0, []) and all(line.endswith("does not exist yet") for line in lines)
    assert load_config(str(tmp_path / f"{name}.py")).train_dataloader.batch_size == 8
    status, lines, _ = run("import_xtuner_config.py", name, cwd=tmp_path)
    assert (status, lines) == (2, [f"error: {name}.py exists; --force replaces it"])
    assert run("import_xtuner_config.py", name, "--force", cwd=tmp_path)[0] == 0
    status, lines, _ = run("import_xtuner_config.py", f"{name}.py", "--force", cwd=tmp_path)
    assert (status, lines) == (2, [f"error: {name}.py is the config itself; name another OUT"])


def test_a_config_of_ours_and_foreign_data_are_refused(tmp_path):
    ours = Path(__file__).resolve().parents[2] / "configs/finetune_lora.py"
    with pytest.raises(ConfigError, match="is no config of XTuner's own"):
        import_config(str(ours), tmp_path / "out.py")
    path = edited(tmp_path, ("type=InternVL_V1_5_Dataset", "type=AdamW"))
    with pytest.raises(ConfigError, match="dataset AdamW; InternVL_V1_5_Dataset is read"):
        import_config(str(path), tmp_path / "out.py")
    path = edited(tmp_path, ('data_root + "llava_images"', '["a", "b"]'))
    with pytest.raises(ConfigError, match="1 data_paths, 2 image_folders, 1 repeat_times; give one for each file"):
        import_config(str(path), tmp_path / "out.py")
