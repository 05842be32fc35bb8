"""A tiny training case that every strategy runs: real commands, a mixed data set, the losses as logged."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.utils._pytree import keystr, tree_leaves_with_path

from tests.small_data import write_dataset  # noqa: F401
from xtuner_plugins.engine.watch.console import STEP_LINE  # noqa: F401


def scalars(work_dir: Path, key: str) -> list[dict[str, float]]:
    """What the newest start of a run logged in the steps that have a ``key``."""
    newest = max(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if key in line]


def logged(work_dir: Path, key: str = "loss") -> list[float]:
    """The values of a ``key`` alone."""
    return [line[key] for line in scalars(work_dir, key)]


def base_and_data(base: Path, data: tuple[Path, Path]) -> dict[str, str | list[str]]:
    """Options that give a recipe another base and other data."""
    dataset = "train_dataloader.dataset"
    own = {f"{dataset}.data_paths": [str(data[0])], f"{dataset}.image_folders": [str(data[1])]}
    return {"model.base": str(base), **own}


def contents(path: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimizer's state of a checkpoint that any strategy wrote, by kind and parameter."""
    from xtuner_plugins.engine.run.transfer import read_state

    state = read_state(path)
    found = {f"weight {name}": tensor.read() for name, tensor in state.weights.items()}
    for name, entries in state.states.items():
        for key, value in tree_leaves_with_path(entries):  # of 8 bits some are in a dict
            found[f"{keystr(key)} {name}"] = value.read() if hasattr(value, "read") else torch.as_tensor(value)
    return found


def require_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Fails where two sets of tensors differ in a name or a bit."""
    assert left.keys() == right.keys() and left
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def training(
    work_dir: Path,
    base: Path,
    data: tuple[Path, Path],
    *,
    processes: int = 1,
    deepspeed: str | None = None,
    options: dict | None = None,
    config: str = "configs/toy/toy_finetune_full.py",
    extra: tuple[str, ...] = (),
) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a training on a global batch of 4."""
    made = base_and_data(base, data)
    settings = {
        **{key: f"[{value[0]}]" if isinstance(value, list) else value for key, value in made.items()},
        "train_dataloader.batch_size": 4 // processes,
        "train_dataloader.num_workers": 0,
        "default_hooks.logger.interval": 1,
        "train_cfg.max_epochs": 1,
        "optim_wrapper.optimizer.lr": 1e-3,
        "param_scheduler.warmup_ratio": 0.0,
        **(options or {}),
    }
    arguments = [config, "--work-dir", str(work_dir), "--seed", "7", *extra]
    if deepspeed:
        arguments += ["--deepspeed", deepspeed]
    arguments += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NPROC_PER_NODE": str(processes)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return arguments, env
