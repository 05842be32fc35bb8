"""What is refused from a config's text; tests/golden/wrong_inputs.tsv has the commands."""

import json

import pytest

from tests.conftest import ROOT
from xtuner_plugins.engine.check.text import _ALSO, _CHECKS, _check_targets, check_base, check_text, check_values
from xtuner_plugins.ranges import RANGES
from xtuner_plugins.settings import SETTINGS, ConfigError, read_config, typed_nodes

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


KEYS = {SETTINGS[name].key: name for name in RANGES} | _ALSO | {key: key for key in _CHECKS}


@pytest.mark.parametrize("key", KEYS)
def test_every_range_is_checked_at_its_key(key):
    at = key.rpartition(".")[0]
    hook = {f"{at}.type": "Hook"} if "hooks" in at else {}
    check_values(nested({key: None, **hook}))
    with pytest.raises(ConfigError, match=rf"^{at}(: |\.).*nonsense"):
        check_values(nested({key: "nonsense", **hook}))


@pytest.mark.parametrize(
    "key, value, message",
    [
        (f"{DATA}.max_length", "long", f"^{DATA}.max_length='long': MultimodalDataset takes int$"),
        ("model.freeze_llm", "yes", "freeze_llm='yes': VisionLanguageModel takes bool"),
        ("model.llm_lora.r", "x", "llm_lora.r='x': LoraConfig takes int"),
        ("model.llm_lora.r", True, "llm_lora.r=True: LoraConfig takes int"),
        ("train_cfg.max_iters", 10.5, "max_iters=10.5: PlannedTrainLoop takes int or None"),
        ("train_cfg.max_epochs", -1, "train_cfg: max_epochs=-1"),
        ("train_dataloader.datset", {}, "train_dataloader.datset: DataLoader has no setting 'datset'; did you mean"),
        ("custom_hooks.0.zzz", 1, r"custom_hooks\[0\].zzz: RunContractHook has no setting 'zzz'; known: "),
        ("default_hooks.chekpoint", {"interval": 5}, "default_hooks.chekpoint: a hook needs a type.* 'checkpoint'"),
        (f"{DATA}.max_tiles", 0, "no tile limits"),
        (f"{DATA}.min_tiles", 7, "min_tiles=7 and max_tiles=6 are no tile limits"),
        (f"{DATA}.storage_options", {"secret": "x"}, "dataset: storage_options holds a credential itself .secret."),
        (
            f"{DATA}.backend_args",
            {"anon": True},
            "no setting 'backend_args'; write fsspec's options as storage_options",
        ),
        (f"{DATA}.dataset_settings", [{"storage_options": {"key": "x"}}], r"dataset_settings\[0\]: .* holds a cred"),
        (f"{DATA}.data_paths", ["ftp://me:x@host/a.jsonl"], r"data_paths: ftp://\*\*\*@host/a.jsonl is a URL of a"),
        (f"{DATA}.image_folders", ["oss://b/a"], "image_folders: oss://b/a needs the package ossfs; pip install"),
        ("model.freeze_projector", None, None),
    ],
)
def test_keys_and_values(check, key, value, message):
    if message is None:
        return check({key: value})
    with pytest.raises(ConfigError, match=message) as caught:
        check({key: value})
    assert "\n" not in str(caught.value)


RATES = "optim_wrapper.paramwise_cfg.part_lr"
NOTHING = {"model.llm_lora": None, "model.freeze_projector": True}
FOUR_BITS = "finetune_qlora"


@pytest.mark.parametrize(
    "changes, message",
    [
        (NOTHING, "model: nothing would train"),
        ({**NOTHING, "model.visual_encoder_last_layers": 1}, None),
        ({**NOTHING, "model.train_head": True, f"{RATES}.llm": 1e-4}, None),
        ({**NOTHING, "model.freeze_visual_encoder": False, f"{RATES}.visual_encoder": 1e-4}, None),
        ({f"{RATES}.visual_encoder": 1e-4}, "a learning rate is set for visual_encoder, but nothing of it trains"),
        ({f"{RATES}.llm": 1e-4}, "set for llm, "),
        ({f"{RATES}.lora": 1e-4, "model.llm_lora": None}, "set for lora, "),
        ({f"{RATES}.projector": 1e-4, "model.freeze_projector": True}, "set for projector, "),
        ({f"{RATES}.lora": 1e-4, f"{RATES}.projector": None, "model.freeze_projector": True}, None),
        ({"model.llm_lora": None, "model.llm_quantization": {"load_in_4bit": True}}, "trains through adapters"),
        ({"model.llm_lora": None, "model.llm_quantization": {}, "model.train_head": True}, None),
    ],
)
def test_what_trains(check, changes, message):
    if message is None:
        return check(changes)
    with pytest.raises(ConfigError, match=message):
        check(changes)


def test_the_largest_image_has_room(check):
    with pytest.raises(ConfigError, match="max_tiles=200 .* max_length=512; lower max_tiles to 30 or raise max_length"):
        check({f"{DATA}.max_tiles": 200})
    with pytest.raises(ConfigError, match="but pack_tokens=100; lower max_tiles to 5 or raise pack_tokens above 114"):
        check({"train_dataloader.batch_sampler.max_tokens": 100}, "toy_finetune_packed")
    check({f"{DATA}.max_tiles": 200, f"{DATA}.dataset_settings": [{"max_tiles": 1}]})  # the build looks at each file


@pytest.mark.parametrize("part, right", [("llm", ["q_proj", "nothing"]), ("visual_encoder", ["attn.qkv"])])
def test_targets_are_layers_of_their_part(check, part, right):
    key = f"model.{part}_lora"
    check({key: {"target_modules": right}})
    for wrong in (["nothing"], "q_proj", ["language_model"]):
        with pytest.raises(ConfigError, match=rf"{key}.target_modules=.* is no layer here; it has "):
            check({key: {"target_modules": wrong}})
        check({key: {"target_modules": wrong, "target_parameters": ["x"]}})
    with pytest.raises(ConfigError, match="is no regular expression: missing"):
        check({key: {"target_modules": "(q_proj"}})


def test_targets_of_a_base_in_shards(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": {"model_type": "qwen2"}}))
    index = {"weight_map": {"language_model.model.layers.0.self_attn.q_proj.weight": "a", "mlp1.0.bias": "b"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    _check_targets(nested({"model.base": str(tmp_path), "model.llm_lora.target_modules": ["q_proj"]}))
    with pytest.raises(ConfigError, match="is no layer here; it has q_proj$"):
        _check_targets(nested({"model.base": str(tmp_path), "model.llm_lora.target_modules": ["k_proj"]}))


def test_typed_nodes_name_their_place():
    nodes = dict(typed_nodes({"a": {"type": "X", "b": [{"type": "Y"}]}}))
    assert list(nodes) == ["a", "a.b[0]"]


MISSING = [
    ("finetune_full", "exports/pretrain_mlp", "convert_to_official.py configs/pretrain_mlp.py CHECKPOINT ex"),
    ("finetune_lora", "exports/mine", "convert_to_official.py CONFIG CHECKPOINT exports/mine"),
    ("siglip_qwen2_5/siglip_sft_lora", "exports/siglip_pretrain", "configs/siglip_qwen2_5/siglip_pretrain.py"),
    ("toy/toy_finetune_lora", "work_dirs/quickstart/pretrain_mlp", "earlier stage: make quickstart"),
    ("pretrain_mlp", "models/InternViT-300M-Qwen2.5-1.5B", "make it: python tools/build_base_model.py --vision O"),
    ("internvl_v2/internvl_v2_internlm2_5_8b_finetune", "models/InternVL2-8B", "make it: hf download OpenGVLab"),
    ("finetune_lora", "models/none", "assemble one with python tools/build_base_model.py --vision DIR"),
    (None, "models/none", "or download a released one with hf download ORG/MODEL --local-dir models/none"),
]


@pytest.mark.parametrize("config, base, remedy", MISSING, ids=[remedy for _, _, remedy in MISSING])
def test_a_missing_base_says_how_it_is_made(config, base, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no quick start has run
    with pytest.raises(ConfigError) as error:
        check_base(base, config and str(ROOT / f"configs/{config}.py"))
    assert remedy in str(error.value) and f"model.base={base!r}: no such directory; " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_is_whole(tmp_path):
    def refusal():
        with pytest.raises(ConfigError) as error:
            check_base(str(tmp_path))
        return str(error.value)

    assert "holds no config.json" in refusal()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert "holds no tokenizer" in refusal()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "has no vision part (model_type 'qwen3'" in refusal()
    (tmp_path / "config.json").write_text("no JSON")  # said where it is read
    assert "holds no weights" in refusal()
    (tmp_path / "model.safetensors").write_text("")
    check_base(str(tmp_path))
