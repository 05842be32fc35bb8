"""What is refused from a config's text; tests/golden/wrong_inputs.tsv has the commands."""

import math

import pytest

from tests.conftest import ROOT
from xtuner_plugins.engine.check.text import CHECKS, check_base, check_text, check_values, step_note
from xtuner_plugins.settings import ConfigError, read_config

DATA = "train_dataloader.dataset"


def nested(changes):
    """A config of the least that is needed, with values for keys."""
    whole = {"train_cfg": {"max_iters": 1}}
    for key, value in changes.items():
        node = whole
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return whole


@pytest.fixture
def check(toy_base, tmp_path):
    """check(changes) checks the text of a toy config whose base and data are there."""
    (tmp_path / "a.jsonl").write_text("{}")
    ready = {"model.base": str(toy_base), f"{DATA}.data_paths": [str(tmp_path / "a.jsonl")]}
    ready[f"{DATA}.image_folders"] = [str(tmp_path)]
    return lambda changes, leaf="toy_finetune_lora": check_text(read_config(leaf, {**ready, **changes}))


def test_every_range_is_checked_at_its_key():
    for key in CHECKS:
        at = key.rpartition(".")[0]
        hook = {f"{at}.type": "Hook"} if "hooks" in at else {}
        check_values(nested({key: None, **hook}))
        with pytest.raises(ConfigError, match=rf"^{at}(: |\.).*\(nonsense"):
            check_values(nested({key: "(nonsense", **hook}))


PACK_TOKENS = "train_dataloader.batch_sampler.max_tokens"
NOTHING = {"model.llm_lora": None, "model.freeze_projector": True}
STILL_TRAINS = {"visual_encoder_last_layers": 1, "train_head": True, "freeze_visual_encoder": False}
STILL_TRAINS |= {"visual_encoder_lora": {"r": 4}, "freeze_llm": False}


ROWS = [
    (f"{DATA}.max_length", "long", f"^{DATA}.max_length='long': MultimodalDataset takes int$"),
    ("model.freeze_llm", "yes", "freeze_llm='yes': VisionLanguageModel takes bool"),
    ("model.llm_lora.r", "x", "llm_lora.r='x': LoraConfig takes int"),
    ("model.llm_lora.r", True, "llm_lora.r=True: LoraConfig takes int"),
    ("train_cfg.max_iters", 10.5, "max_iters=10.5: PlannedTrainLoop takes int or None"),
    ("train_cfg.max_epochs", None, "train_cfg: train_cfg needs max_iters .* or max_epochs"),
    ("train_cfg.max_epochs", -1, "train_cfg: max_epochs=-1"),
    ({"train_cfg.max_epochs": 2, "train_cfg.max_iters": 0}, None, "train_cfg: max_iters=0 is no length of a run"),
    ("train_cfg.max_epochs", math.inf, "max_epochs=inf"),
    ("train_cfg.max_epochs", math.nan, "max_epochs=nan"),
    ({"train_cfg.max_epochs": 0.5, "train_cfg.max_iters": 10}, None, None),
    ("train_dataloader.datset", {}, "train_dataloader.datset: DataLoader has no setting 'datset'; did you mean"),
    ("custom_hooks.0.zzz", 1, r"custom_hooks\[0\].zzz: RunContractHook has no setting 'zzz'; known: "),
    ("default_hooks.chekpoint", {"interval": 5}, "default_hooks.chekpoint: a hook needs a type.* 'checkpoint'"),
    (f"{DATA}.max_tiles", 0, "no tile limits"),
    (f"{DATA}.storage_options", {"secret": "x"}, "dataset: storage_options holds a credential itself .secret."),
    (f"{DATA}.dataset_settings", [{"storage_options": {"key": "x"}}], r"dataset_settings\[0\]: .* holds a cred"),
    (f"{DATA}.data_paths", ["ftp://me:x@host/a.jsonl"], r"data_paths: ftp://\*\*\*@host/a.jsonl is a URL of a"),
    (f"{DATA}.image_folders", ["oss://b/a"], "image_folders: oss://b/a needs the package ossfs; pip install"),
    ("model.freeze_projector", None, None),
    (NOTHING, None, "model: nothing would train"),
    *(({**NOTHING, f"model.{key}": value}, None, None) for key, value in STILL_TRAINS.items()),
    ({"model.llm_lora": None, "model.llm_quantization": {"load_in_4bit": True}}, None, "trains through adapters"),
    ({"model.llm_lora": None, "model.llm_quantization": {}, "model.train_head": True}, None, None),
    (f"{DATA}.max_tiles", 200, "max_tiles=200 .* max_length=512; lower max_tiles to 30 or raise max_length"),
    # The build looks at each file.
    ({f"{DATA}.max_tiles": 200, f"{DATA}.dataset_settings": [{"max_tiles": 1}]}, None, None),
]


def test_keys_and_values(check):
    for key, value, message in ROWS:
        changes = key if isinstance(key, dict) else {key: value}
        if message is None:
            check(changes)
            continue
        with pytest.raises(ConfigError, match=message) as caught:
            check(changes)
        assert "\n" not in str(caught.value)


def test_a_pack_has_room_for_the_largest_image(check):
    with pytest.raises(ConfigError, match="but pack_tokens=100; lower max_tiles to 5 or raise pack_tokens above 114"):
        check({PACK_TOKENS: 100}, "toy_finetune_packed")


MISSING = [
    ("finetune_full", "exports/pretrain_mlp", "convert_to_official.py configs/pretrain_mlp.py CHECKPOINT ex"),
    ("finetune_lora", "exports/mine", "convert_to_official.py CONFIG CHECKPOINT exports/mine"),
    ("siglip_qwen2_5/siglip_sft_lora", "exports/siglip_pretrain", "configs/siglip_qwen2_5/siglip_pretrain.py"),
    ("toy/toy_finetune_lora", "work_dirs/quickstart/pretrain_mlp", "make it: make quickstart"),
    ("pretrain_mlp", "models/InternViT-300M-Qwen2.5-1.5B", "make it: python tools/build_base_model.py --vision O"),
    ("internvl_v2/internvl_v2_internlm2_5_8b_finetune", "models/InternVL2-8B", "make it: hf download OpenGVLab"),
    ("finetune_lora", "models/none", "assemble one with python tools/build_base_model.py --vision DIR"),
    (None, "models/none", "or download a released one with hf download ORG/MODEL --local-dir models/none"),
]


def test_a_missing_base_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no quick start has run
    for config, base, remedy in MISSING:
        with pytest.raises(ConfigError) as error:
            check_base(base, config and str(ROOT / f"configs/{config}.py"))
        assert remedy in str(error.value) and f"model.base={base!r}: no such directory; " in str(error.value)


def test_far_more_or_fewer_samples_per_step_than_the_recipe_are_told(tmp_path):
    path = tmp_path / "mine.py"
    for recipe, ranks, changes, told in (
        ("finetune_full", 8, {}, ""),
        ("finetune_full", 2, {}, "32 samples per step, but finetune_full has 128, for which its lr=4e-05 is meant"),
        ("finetune_full", 2, {"optim_wrapper.optimizer.lr": 1e-5}, ""),
        ("finetune_full", 3, {}, ""),
        ("finetune_lora", 4, {}, "64 samples per step, but finetune_lora has 16"),
    ):
        lines = "from mmengine.config import read_base", "with read_base():", f"    from xtp_configs.{recipe} import *"
        path.write_text("\n".join(lines))
        for name in (recipe, str(path)):
            note = step_note(read_config(name, changes), ranks)
            assert note.startswith(told) and bool(note) == bool(told)
    assert step_note(read_config(str(ROOT / "configs/_base_/run.py")), 64) == ""
