"""What a user has changed in one of XTuner's configs is carried over, or named."""

import pytest

from tests.cli.xtuner_cases import edited
from xtuner_plugins.cli.from_xtuner import import_config
from xtuner_plugins.settings import SETTINGS, ConfigError, read_config, value_at

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
        None,
        {"lora_rank": 128, "model.visual_encoder_lora.r": 16, "model.visual_encoder_lora.lora_dropout": 0.0},
    ),
    (
        ("dataset=llava_dataset", "dataset=dict(type=ConcatDataset, datasets=[llava_dataset, dict(type=Own, n=1)])"),
        "dataset Own is not carried over: {'type': Own, 'n': 1}",
        {},
    ),
]


def key_of(name):
    return SETTINGS[name].key if name in SETTINGS else name


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
    (tmp_path / "mine.py").write_text(imported.text)
    found = read_config(str(tmp_path / "mine.py"))
    assert {name: value_at(found, key_of(name)) for name in settings} == settings


def test_the_docstring_says_what_differs(tmp_path):
    imported = import_config(str(edited(tmp_path, ("load_from = None", 'load_from = "a.pth"'))), tmp_path / "mine.py")
    words = " ".join(imported.text.partition("\ndiffers ")[2].partition('"""')[0].split())
    assert all(note in words for note in imported.notes if "hf download" not in note), words
    assert "load_from='a.pth' is not carried over" in words


def test_foreign_data_are_refused(tmp_path):
    path = edited(tmp_path, ("type=InternVL_V1_5_Dataset", "type=AdamW"))
    with pytest.raises(ConfigError, match="dataset AdamW; InternVL_V1_5_Dataset is read"):
        import_config(str(path), tmp_path / "out.py")
