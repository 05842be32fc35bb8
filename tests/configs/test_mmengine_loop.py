"""Our parts in MMEngine's hands: its loop, its way to build a data loader, its hooks."""

import json
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.small_data import write_dataset
from xtuner_plugins.datasets import SettingError
from xtuner_plugins.settings import CONFIGS


def test_the_example_trains_on_its_own_loop(toy_base, tmp_path):
    cfg, (path, images) = Config.fromfile(CONFIGS / "toy/toy_mmengine_loop.py"), write_dataset(tmp_path / "data", 8)
    cfg.train_dataloader.update(num_workers=0, batch_size=2)
    cfg.train_dataloader.dataset.update(data_paths=[str(path)], image_folders=[str(images)], base=None)
    with pytest.raises(SettingError, match="base=None can't be used.*that of model.base"):
        Runner.build_dataloader(cfg.train_dataloader)
    own = {"model.base": str(toy_base), "train_dataloader.dataset.base": str(toy_base), "train_cfg.max_iters": 3}
    own |= {"default_hooks.logger.interval": 1, "default_hooks.checkpoint.interval": 3}
    cfg.merge_from_dict({**own, "work_dir": str(tmp_path / "run"), "experiment_name": "toy_mmengine_loop"})
    runner = Runner.from_cfg(cfg)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters() if p.requires_grad}
    runner.train()
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    saved = torch.load(tmp_path / "run" / "iter_3.pth", weights_only=False)["state_dict"]
    assert saved.keys() == before.keys() and not any(torch.equal(saved[name], before[name]) for name in before)
