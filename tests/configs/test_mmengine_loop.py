"""Our parts in MMEngine's hands: its loop, and its way to build a data loader."""

import json
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.small_data import write_dataset
from xtuner_plugins.datasets import SettingError
from xtuner_plugins.settings import CONFIGS, read_config


@pytest.fixture
def config(toy_base, tmp_path):
    """Reads a config with MMEngine alone, and gives it data and base."""

    path, images = write_dataset(tmp_path / "data", 8)

    def read(name, base):
        read_config(name)  # makes configs importable
        cfg = Config.fromfile(CONFIGS / "toy" / f"{name}.py")
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
        own = dict(data_paths=[str(path)], image_folders=[str(images)])
        cfg.train_dataloader.dataset.update(own, **({"base": str(toy_base)} if base else {}))
        return cfg

    return read


def test_the_example_trains_on_its_own_loop(config, toy_base, tmp_path):
    cfg = config("toy_mmengine_loop", base=True)
    cfg.merge_from_dict({"model.base": str(toy_base), "train_cfg.max_iters": 3, "work_dir": str(tmp_path / "run")})
    cfg.merge_from_dict({"default_hooks.logger.interval": 1, "default_hooks.checkpoint.interval": 3})
    cfg.experiment_name = "toy_mmengine_loop"
    runner = Runner.from_cfg(cfg)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters() if p.requires_grad}
    runner.train()
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    saved = torch.load(tmp_path / "run" / "iter_3.pth", weights_only=False)["state_dict"]
    assert saved.keys() == before.keys() and not any(torch.equal(saved[name], before[name]) for name in before)


def test_a_leaf_whose_loader_mmengine_builds(config):
    with pytest.raises(SettingError, match="base=None can't be used.*that of model.base"):
        Runner.build_dataloader(config("toy_pretrain_mlp", base=False).train_dataloader, seed=0)
    loader = Runner.build_dataloader(config("toy_pretrain_mlp", base=True).train_dataloader, seed=0)
    batch = next(iter(loader))
    assert len(batch["num_tiles"]) == 2 and len(batch["tiles"]) == batch["num_tiles"].sum()
