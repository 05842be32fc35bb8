"""Values that can't be are refused by the very constructors, in one line, before a process starts."""

import json
import shutil

import pytest

from tests.conftest import ROOT
from tests.engine.parallel_case import base_and_data, write_dataset
from xtuner_plugins.deepspeed_json import deepspeed_file
from xtuner_plugins.engine.config_check import check_base, check_config
from xtuner_plugins.settings import ConfigError, load_config

LOADER, OPTIMIZER, LORA = "train_dataloader", "optim_wrapper.optimizer", "model.llm_lora"
DATASET = f"{LOADER}.dataset"
REFUSED = [
    (f"{DATASET}.max_tiles", 0, "tile limits"),
    (f"{DATASET}.max_tiles", 200, r"max_tiles=200 .* max_length=512; lower max_tiles to 30 or raise max_length"),
    (f"{DATASET}.max_length", 10, r"max_length=10; raise max_length above"),
    (f"{DATASET}.max_length", "long", "max_length='long': MultimodalDataset wants a valid integer"),
    (f"{DATASET}.template", "nope", "unknown conversation template 'nope'"),
    (f"{LOADER}.batch_size", 0, "batch_size=0 is no size of a batch"),
    (f"{LOADER}.batch_size", 1.5, "batch_size"),
    (f"{LOADER}.num_workers", -1, "num_workers"),
    (f"{LORA}.r", 0, r"model.llm_lora: r=0 is no rank"),
    (f"{LORA}.r", "x", r"model.llm_lora.r='x': LoraConfig wants a valid integer"),
    (f"{LORA}.lora_dropout", -0.1, "lora_dropout=-0.1 is out of range"),
    (f"{LORA}.target_modules", ["nope"], r"llm_lora.target_modules=.*nope.* is no layer here"),
    (f"{OPTIMIZER}.lr", "abc", "lr='abc': build_adamw wants a valid number"),
    (f"{OPTIMIZER}.lr", -1.0, "optim_wrapper.optimizer: lr=-1.0 is no learning rate"),
    (f"{OPTIMIZER}.betas", (0.9, 1.5), "Invalid beta parameter at index 1"),
    (f"{OPTIMIZER}.weight_decay", -0.1, "Invalid weight_decay"),
    ("optim_wrapper.accumulative_counts", 0, "accumulative_counts"),
    ("optim_wrapper.clip_grad.max_norm", -1, "max_norm=-1 is out of range"),
    ("train_cfg.max_epochs", 0, "train_cfg: max_epochs=0 is no length of a run"),
    ("train_cfg.max_epochs", -1, "max_epochs=-1"),
    ("train_cfg.max_iters", 0, "max_iters=0"),
    ("train_cfg.max_iters", 10.5, "max_iters=10.5: PlannedTrainLoop wants a valid integer"),
    ("param_scheduler.warmup_ratio", -0.1, "warmup_ratio=-0.1"),
    ("param_scheduler.warmup_ratio", 20, "warmup_ratio=20"),
    ("default_hooks.checkpoint.interval", 0, "interval=0 is out of range"),
    ("default_hooks.checkpoint.max_keep_ckpts", 0, "max_keep_ckpts=0 is out of range"),
    ("default_hooks.chekpoint", {"interval": 5}, "default_hooks.chekpoint: a hook needs a type"),
    ("train_dataloader.datset", {"max_tiles": 6}, "train_dataloader: .*datset"),
    ("randomness.sed", 5, "nothing reads 'sed'; known: "),
    (
        f"{DATASET}.backend_args",
        {"secret": "x"},
        "dataset: backend_args holds a credential itself .secret.",
    ),
    (f"{DATASET}.backend_args", {"backend": 3}, "backend_args: 'backend' is no name"),
    (
        f"{DATASET}.dataset_settings",
        [{"backend_args": {"key": "x"}}],
        r"dataset_settings\[0\]: backend_args holds a cred",
    ),
    (f"{DATASET}.data_paths", ["ftp://me:x@host/a.jsonl"], r"data_paths: ftp://\*\*\*@host/a.jsonl is a URL of a kind"),
    (
        f"{DATASET}.image_folders",
        ["oss://bucket/a"],
        "image_folders: oss://bucket/a needs the package ossfs; pip install",
    ),
    (f"{DATASET}.store_timeout", 0, "store_timeout=0 can't be used"),
    (f"{DATASET}.image_cache_gib", -1, "image_cache_gib=-1 can't be used"),
    ("model.dtype", "half", "dtype='half' is not supported; it is one of: auto, bfloat16, float16, float32"),
    ("model.freeze_llm", "yes", "freeze_llm='yes': VisionLanguageModel wants a valid boolean"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data")


def check(base, data, options=(), config="configs/toy/toy_finetune_lora.py"):
    check_config(load_config(str(ROOT / config), {**base_and_data(base, data), **dict(options)}))


@pytest.mark.parametrize("key, value, message", REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED])
def test_values_out_of_range_or_of_another_type(toy_base, data, key, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check(toy_base, data, {key: value})
    assert "\n" not in str(caught.value)


def test_validation_data_is_opened(toy_base, data, tmp_path):
    """By the dataset that will hold it, with the settings of a leaf."""
    (none := tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match="val_data_paths: .*none.jsonl") as caught:
        check(toy_base, data, {"default_hooks.validation.data_paths": [str(none)]})
    assert "\n" not in str(caught.value)


def broken_bases(base, folder):
    """(what is missing, what the message says) of copies of a base that each lack something."""

    def edited(name, change):
        copy = shutil.copytree(base, folder / name)
        fields = json.loads((copy / "config.json").read_text())
        change(fields)
        (copy / "config.json").write_text(json.dumps(fields))
        return copy

    no_tokenizer = shutil.copytree(base, folder / "no_tokenizer")
    for path in [*no_tokenizer.glob("*token*"), *no_tokenizer.glob("vocab*"), *no_tokenizer.glob("merges*")]:
        path.unlink()
    no_weights = shutil.copytree(base, folder / "no_weights")
    for path in no_weights.glob("*.safetensors*"):
        path.unlink()
    return [
        (no_tokenizer, "tokenizer"),
        (no_weights, "no_weights"),
        (edited("no_vision", lambda fields: fields.pop("vision_config")), "vision_config"),
        (edited("no_llm", lambda fields: fields.pop("llm_config")), "llm_config"),
        (edited("other_shape", lambda fields: fields["llm_config"].update(intermediate_size=64)), "of another shape"),
    ]


def test_types_of_other_libraries_may_be_named_by_string(toy_base, data):
    check(toy_base, data, {"model.llm_lora.type": "LoraConfig"})
    qlora = "configs/toy/toy_finetune_qlora.py"
    check(toy_base, data, {"model.llm_quantization.type": "BitsAndBytesConfig"}, qlora)
    with pytest.raises(ConfigError, match="model.llm_lora.rank: LoraConfig has no setting 'rank'"):
        check(toy_base, data, {"model.llm_lora.type": "LoraConfig", "model.llm_lora.rank": 4})
    with pytest.raises(ConfigError, match="type='LoraKonfig' is not a known class"):
        check(toy_base, data, {"model.llm_lora.type": "LoraKonfig"})


def test_a_base_that_lacks_something(toy_base, data, tmp_path):
    for base, message in broken_bases(toy_base, tmp_path):
        with pytest.raises(ConfigError, match=message) as caught:
            check(base, data)
        assert str(base) in str(caught.value) and "\n" not in str(caught.value), base.name


def test_nothing_is_loaded(toy_base, data, monkeypatch):
    """The check of a 7B model must not read 14 GB."""
    from xtuner_plugins.checkpoints.io import tensors

    monkeypatch.setattr(tensors.LazyTensor, "read", lambda self: pytest.fail("a weight was read"))
    check(toy_base, data)


@pytest.mark.parametrize(
    "value, message",
    [
        ("zero3", "did you mean deepspeed_zero3"),
        ("deepspeed_zero4", "did you mean deepspeed_zero"),
        ("no/such.json", "no such file"),
        ("nonsense", "known: deepspeed_zero1"),
    ],
)
def test_deepspeed_is_named_right(value, message):
    with pytest.raises(ConfigError, match=message):
        deepspeed_file(value)


def test_deepspeed_files_are_json(tmp_path):
    path = tmp_path / "ds.json"
    for text, message in [("{", "not JSON"), ("[1]", "holds a list")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            deepspeed_file(str(path))
    deepspeed_file("deepspeed_zero3")


MISSING = [
    (
        "configs/finetune_lora.py",
        "exports/pretrain_mlp",
        "export the earlier stage: python tools/convert_to_official.py ",
    ),
    (
        "configs/finetune_full.py",
        "exports/pretrain_mlp",
        "convert_to_official.py configs/pretrain_mlp.py CHECKPOINT ex",
    ),
    (
        "configs/siglip_qwen2_5/siglip_sft_lora.py",
        "exports/siglip_pretrain",
        "configs/siglip_qwen2_5/siglip_pretrain.py",
    ),
    ("configs/finetune_lora.py", "exports/mine", "convert_to_official.py CONFIG CHECKPOINT exports/mine"),
    (
        "configs/toy/toy_finetune_lora.py",
        "work_dirs/quickstart/pretrain_mlp",
        "earlier stage: python tools/quickstart.py",
    ),
    (
        "configs/pretrain_mlp.py",
        "models/InternViT-300M-Qwen2.5-1.5B",
        "make it: python tools/build_base_model.py --vision O",
    ),
    (
        "configs/internvl_v2/internvl_v2_internlm2_5_8b_finetune.py",
        "models/InternVL2-8B",
        "make it: hf download OpenGVLab",
    ),
    ("configs/finetune_lora.py", "models/none", "assemble one with python tools/build_base_model.py --vision DIR"),
    (
        "configs/finetune_lora.py",
        "models/none",
        "or download a released one with hf download ORG/MODEL --local-dir mod",
    ),
    (None, "models/none", "assemble one with python tools/build_base_model.py"),
]


@pytest.mark.parametrize("config, base, remedy", MISSING, ids=[f"{base}-{remedy[:20]}" for _, base, remedy in MISSING])
def test_a_missing_base_says_how_it_is_made(config, base, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no quick start has run
    with pytest.raises(ConfigError) as error:
        check_base(base, config and str(ROOT / config))
    assert remedy in str(error.value) and f"model.base={base!r}: no such directory; " in str(error.value)
    assert "\n" not in str(error.value)
