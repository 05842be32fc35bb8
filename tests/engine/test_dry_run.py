"""The parts of a config are built without weights; each refusal names its key."""

import pytest
import torch

from tests.conftest import ROOT
from tests.engine.parallel_case import base_and_data, write_dataset
from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.engine.dry_run import build_parts
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.settings import ConfigError, load_config, make_reloadable


@pytest.fixture(scope="module")
def case(toy_base, tmp_path_factory):
    return base_and_data(toy_base, write_dataset(tmp_path_factory.mktemp("data") / "data", num_samples=4))


def load(case, **options):
    return load_config(str(ROOT / "configs/toy/toy_finetune_lora.py"), {**case, **options})


def test_a_config_that_trains_is_built_and_nothing_is_kept(case):
    cfg = load(case)
    before = cfg.to_dict()
    assert build_parts(cfg) is None
    assert cfg.to_dict() == before and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train_dataloader.batch_size", 0, "train_dataloader: "),
        ("train_cfg.max_epochs", 0, "train_cfg: max_epochs=0"),
        ("optim_wrapper.optimizer.lr", -1.0, "optim_wrapper: Invalid learning rate"),
        ("param_scheduler.warmup_ratio", 2, "param_scheduler: warmup_ratio=2"),
        ("default_hooks.checkpoint.interval", 0, "default_hooks.checkpoint: interval=0"),
        ("model.dtype", "int8", "model: dtype='int8'"),
        ("train_dataloader.dataset.template", "nope", "train_dataloader.dataset: .*'nope'"),
        ("train_dataloader.dataset.max_tiles", 200, "lower max_tiles to .* or raise max_length above"),
    ],
)
def test_a_refusal_names_the_key_of_the_part(case, key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_parts(load(case, **{key: value}))


def test_what_a_run_has_written_is_built_as_its_leaf(case, tmp_path):
    """Its types are text; each refusal of `model` and dataset holds there, too."""
    cfg = load_config(str(ROOT / "configs/toy/toy_finetune_mpo_full.py"), case)
    make_reloadable(cfg)
    (tmp_path / "written.py").write_text(cfg.pretty_text)
    build_parts(load_config(str(tmp_path / "written.py")))
    for key, value in ("model.dtype", "int8"), ("train_dataloader.dataset.template", "nope"):
        with pytest.raises(ConfigError, match=value):
            build_parts(load_config(str(tmp_path / "written.py"), {key: value}))


def test_pairs_to_validate_on_need_a_reference_at_any_time(case):
    once = {**case, "model.precomputed_reference": True}
    files = {"default_hooks.validation.data_paths": case["train_dataloader.dataset.data_paths"]}
    whole, adapters = (str(ROOT / f"configs/{name}.py") for name in ("toy/toy_finetune_mpo_full", "finetune_dpo_lora"))
    with pytest.raises(ConfigError, match="^val_data_paths: log probabilities of the reference are computed once for"):
        build_parts(load_config(whole, {**once, **files}))
    build_parts(load_config(whole, once))
    build_parts(load_config(adapters, {**once, **files, "train_dataloader.dataset.max_length": 8192}))


@pytest.mark.parametrize("part", ["model", "dataset", "collate_fn"])
def test_model_dataset_and_collate_function_of_pairs_go_together(case, part):
    cfg = load_config(str(ROOT / "configs/toy/toy_finetune_mpo_full.py"), case)
    if part == "model":
        cfg.model = dict(type=VisionLanguageModel, base=cfg.model.base, dtype="float32")
    else:
        cfg.train_dataloader[part].type = {"dataset": MultimodalDataset, "collate_fn": collate}[part]
    with pytest.raises(ConfigError, match="don't fit together: .*takes PreferenceModel, PreferenceDataset and"):
        build_parts(cfg)


def test_the_index_of_a_refused_scheduler_or_hook_is_named(case):
    cfg = load(case)
    cfg.param_scheduler = [cfg.param_scheduler, {**cfg.param_scheduler, "warmup_ratio": -1}]
    with pytest.raises(ConfigError, match=r"^param_scheduler\[1\]: "):
        build_parts(cfg)
    cfg = load(case)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(interval=3)]
    with pytest.raises(ConfigError, match=rf"^custom_hooks\[{len(cfg.custom_hooks) - 1}\]: a hook needs a type"):
        build_parts(cfg)
