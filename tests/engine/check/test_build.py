"""What the text doesn't tell is refused by the very constructors, in one line, before a process starts."""

import json
import shutil

import pytest
import torch

from tests.conftest import ROOT
from tests.engine.parallel_case import base_and_data, write_dataset
from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.engine.check.build import check_build, check_config
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.settings import ConfigError, make_reloadable, read_config
from xtuner_plugins.weights import lazy

LORA, MPO = "toy/toy_finetune_lora", "toy/toy_finetune_mpo_full"
DATASET, LLM_LORA = "train_dataloader.dataset", "model.llm_lora"
RATES = "optim_wrapper.paramwise_cfg.part_lr"
VALIDATION = "default_hooks.validation"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data", num_samples=4)


@pytest.fixture
def load(toy_base, data):
    def load(changes=(), leaf=LORA, base=toy_base):
        files = data if leaf == LORA or "qlora" in leaf else (data[0].with_name("pairs.jsonl"), data[1])
        return read_config(str(ROOT / f"configs/{leaf}.py"), {**base_and_data(base, files), **dict(changes)})

    return load


def refusal(cfg, check=check_build):
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_config_that_trains_is_built_and_nothing_is_kept(load, monkeypatch):
    """The check of a 7B model must not read 14 GB."""
    monkeypatch.setattr(lazy.LazyTensor, "read", lambda self: pytest.fail("a weight was read"))
    cfg = load()
    before = cfg.to_dict()
    assert check_config(cfg) is None
    assert cfg.to_dict() == before and torch.get_default_device().type == "cpu"


REFUSALS = [
    ("train_dataloader.prefetch_factor", -1, "train_dataloader: prefetch_factor"),
    ("optim_wrapper.optimizer.betas", (0.9, 1.5), "optim_wrapper: Invalid beta parameter at index 1"),
    ("optim_wrapper.paramwise_cfg.loraplus_lr_ratio", 0, "optim_wrapper.paramwise_cfg: loraplus_lr_ratio=0"),
    ("param_scheduler.warmup_ratio", 2, "param_scheduler: warmup_ratio=2"),
    ("model.dtype", "int8", "model: dtype='int8'"),
    ("model.freeze_llm", False, "model: llm_lora is set, so set freeze_llm=True"),
    (f"{LLM_LORA}.type", "LoraKonfig", f"{LLM_LORA}.type='LoraKonfig' is not a known class"),
    (f"{LLM_LORA}", {"type": "LoraConfig", "rank": 4}, f"{LLM_LORA}.rank: LoraConfig has no setting 'rank'"),
    (f"{LLM_LORA}.target_modules", "nothing", "model: llm_lora: target_modules: no layer matches 'nothing'"),
    (f"{RATES}.visual_encoder", 1e-4, "a learning rate is set for visual_encoder, but nothing of it trains"),
    (f"{DATASET}.template", "nope", f"{DATASET}: unknown conversation template 'nope'"),
    (f"{DATASET}.dataset_settings", [{"max_tiles": 200}], "lower max_tiles to 30 or raise max_length above"),
]


def test_a_refusal_names_the_key_of_the_part(load):
    for key, value, message in REFUSALS:
        assert message in refusal(load({key: value}))


def test_types_of_other_libraries_may_be_named_by_string(load):
    check_build(load({f"{LLM_LORA}.type": "LoraConfig"}))
    check_build(load({"model.llm_quantization.type": "BitsAndBytesConfig"}, "toy/toy_finetune_qlora"))


def test_the_first_sample_of_each_file_is_opened(load, data, tmp_path):
    broken, none = tmp_path / "broken.jsonl", tmp_path / "none.jsonl"
    broken.write_text("{'image': 'a.png'}\n")
    none.write_text("")
    both = {f"{DATASET}.data_paths": [str(data[0]), str(broken)], f"{DATASET}.image_folders": [str(data[1])] * 2}
    assert refusal(load(both)).startswith(f"{DATASET}: {broken}:1: not JSON")
    for file, message in ((broken, ":1: not JSON"), (none, "it holds no records")):
        said = refusal(load({f"{VALIDATION}.data_paths": [str(file)]}))
        assert said.startswith("val_data_paths: ") and message in said
    with pytest.raises(ConfigError, match="val_data_paths: .* holds no records"):
        check_config(load({f"{VALIDATION}.data_paths": [str(none)]}))


def test_a_base_that_lacks_something(load, toy_base, tmp_path):
    for name, change, message in (
        ("no_llm", lambda fields: fields.pop("llm_config"), "llm_config"),
        ("other_shape", lambda fields: fields["llm_config"].update(intermediate_size=64), "of another shape"),
    ):
        base = shutil.copytree(toy_base, tmp_path / name)
        fields = json.loads((base / "config.json").read_text())
        change(fields)
        (base / "config.json").write_text(json.dumps(fields))
        said = refusal(load(base=base), check_config)
        assert message in said and str(base) in said


def test_what_a_run_has_written_is_built_as_its_leaf(load, tmp_path):
    """Its types are text; each refusal of `model` and dataset holds there, too."""
    cfg = load(leaf=MPO)
    make_reloadable(cfg)
    (tmp_path / "written.py").write_text(cfg.pretty_text)
    check_config(read_config(str(tmp_path / "written.py")))
    for key, value in ("model.dtype", "int8"), (f"{DATASET}.template", "nope"):
        assert value in refusal(read_config(str(tmp_path / "written.py"), {key: value}))


def test_pairs_to_validate_on_need_a_reference_at_any_time(load, data):
    once = {"model.precomputed_reference": True}
    pairs = str(data[0].with_name("pairs.jsonl"))
    files = {f"{VALIDATION}.data_paths": [pairs], f"{VALIDATION}.image_folders": [str(data[1])]}
    said = refusal(load({**once, **files}, MPO))
    assert said.startswith("val_data_paths: log probabilities of the reference are computed once for")
    check_build(load(once, MPO))
    check_build(load({**once, **files, f"{DATASET}.max_length": 8192}, "finetune_dpo_lora"))


def test_model_dataset_and_collate_function_of_pairs_go_together(load, data):
    for part in ("model", "dataset", "collate_fn"):
        cfg = load({f"{DATASET}.data_paths": str(data[0])} if part == "dataset" else (), MPO)
        if part == "model":
            cfg.model = dict(type=VisionLanguageModel, base=cfg.model.base, dtype="float32")
        else:
            cfg.train_dataloader[part].type = {"dataset": MultimodalDataset, "collate_fn": collate}[part]
        assert "don't fit together: " in refusal(cfg), part


def test_the_index_of_a_refused_scheduler_or_hook_is_named(load):
    cfg = load()
    cfg.param_scheduler = [cfg.param_scheduler, {**cfg.param_scheduler, "warmup_ratio": -1}]
    assert refusal(cfg).startswith("param_scheduler[1]: ")
    cfg = load()
    cfg.custom_hooks = [*cfg.custom_hooks, dict(interval=3)]
    assert refusal(cfg).startswith(f"custom_hooks[{len(cfg.custom_hooks) - 1}]: ")


def test_a_deepspeed_file_of_another_dtype(load):
    cfg = load({"model.dtype": "float32"})
    check_config(cfg, {"bf16": {"enabled": "auto"}})
    said = refusal(cfg, lambda each: check_config(each, {"bf16": {"enabled": True}}))
    assert said.startswith(
        "--deepspeed: the file sets bf16.enabled=True, but the model computes in float32 (model.dtype)"
    )
