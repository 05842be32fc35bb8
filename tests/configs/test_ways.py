"""However a config reaches the training, it trains the same: the third step's loss is equal to the last digit."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.conftest import ROOT
from tests.engine.forked import logged, run_forked, write_dataset
from xtuner_plugins.engine.launch import launcher
from xtuner_plugins.settings import SETTINGS, read_config

LEAF = "toy_finetune_lora"
KEYS = {"default_hooks.logger.interval": 1, "randomness.seed": 7}


@pytest.fixture
def settings(toy_base, tmp_path, monkeypatch):
    """Short names with the values of a run of three steps, whose rate differs from the leaf's."""
    monkeypatch.chdir(tmp_path)
    data, images = write_dataset(tmp_path / "data", num_samples=16)
    ready = {"base": str(toy_base), "data_paths": [str(data)], "image_folders": [str(images)], "num_workers": 0}
    return {**ready, "batch_size": 4, "max_steps": 3, "lr": 5e-3, "lora_rank": 4}


def words(values):
    return [f"{name}={value}" for name, value in values.items()]


def keyed(settings):
    return {SETTINGS[name].key: value for name, value in settings.items()} | KEYS


def derived(folder, settings, parent=f"xtp_configs.toy.{LEAF}", name=LEAF):
    """A user's config that takes in the leaf, or another one of the user's."""
    lines = [f"{key} = {value!r}" for key, value in settings.items()]
    path = folder / "my-configs" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    head = f"from mmengine.config import read_base\nwith read_base():\n    from {parent} import *\n"
    path.write_text(head + "\n".join(lines) + "\n")
    return str(path)


def resolved(monkeypatch, *arguments):
    """The text of the config that the launcher hands to the training processes."""
    handed = []
    monkeypatch.setattr(launcher, "run_ranks", lambda command, envs: handed.append(command) or 0)
    assert launcher.main([*map(str, arguments), "--work-dir", "run"]) == 0
    assert "--cfg-options" not in handed[0] and "--set" not in handed[0]
    return Path(handed[0][handed[0].index("xtuner_plugins.engine.launch.train_process") + 1]).read_text()


def plain_runner(folder, changes):
    """MMEngine's own way, in place of XTuner's command: no launcher, no check, no preparation."""
    from mmengine.runner import Runner

    cfg = Config.fromfile(str(ROOT / f"configs/toy/{LEAF}.py"))
    cfg.merge_from_dict(changes)
    cfg.work_dir = folder
    Runner.from_cfg(cfg).train()
    os._exit(0)


def test_every_way_trains_the_same(settings, tmp_path, monkeypatch):
    by_names = resolved(monkeypatch, LEAF, "--set", *words(settings), "--cfg-options", *words(KEYS))
    assert by_names == resolved(monkeypatch, LEAF, "--cfg-options", *words(keyed(settings)))
    rate = {"optim_wrapper.optimizer.lr": 5e-3}
    derived(tmp_path, {**keyed(settings), "optim_wrapper.optimizer.lr": 1.0}, name="first")
    assert by_names == resolved(monkeypatch, derived(tmp_path, rate, ".first"))

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launched = tmp_path / "launched.py"
    launched.write_text(by_names)
    runs = {}

    def train(way, arguments, prepare=None):
        run = run_forked(arguments, env, tmp_path / way, prepare=prepare)
        assert run.ok, run.output[-3000:]
        runs[way] = logged(tmp_path / way)

    train("launcher", [str(launched), "--work-dir", str(tmp_path / "launcher")])
    train("its dump", [str(tmp_path / "launcher" / "launched.py"), "--work-dir", str(tmp_path / "its dump")])
    options = [word.replace(" ", "") for word in words(keyed(settings))]
    leaf = str(ROOT / f"configs/toy/{LEAF}.py")
    train("xtuner", [leaf, "--work-dir", str(tmp_path / "xtuner"), "--cfg-options", *options])
    train("its own dump", [str(tmp_path / "xtuner" / f"{LEAF}.py"), "--work-dir", str(tmp_path / "its own dump")])
    train("plain", [leaf], prepare=partial(plain_runner, str(tmp_path / "plain"), keyed(settings)))
    assert len(runs["launcher"]) == 3 and runs == dict.fromkeys(runs, runs["launcher"])


@pytest.mark.slow
def test_xtuners_own_command_trains_a_leaf_and_what_it_has_written(settings, tmp_path, run_tool):
    """It hands over to the launcher, or to torchrun; a short name among its options is refused."""
    scripts, leaf = Path(sys.executable).parent, ROOT / f"configs/toy/{LEAF}.py"

    def train(*arguments, **more):
        env = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **more}
        return run_tool(scripts / "xtuner", "train", *arguments, cwd=tmp_path, env=env).stderr

    said = train(leaf, "--cfg-options", "lr=5e-3")
    assert "error: lr: no key of the runner; write optim_wrapper.optimizer.lr=" in said, said
    said = train(leaf, "--work-dir", "run", "--cfg-options", *words(keyed(settings)))
    said += train(Path("run") / f"{LEAF}.py", "--work-dir", "again")
    assert len(logged(tmp_path / "run")) == 3 and logged(tmp_path / "run") == logged(tmp_path / "again"), said
    zero = ("--deepspeed", "deepspeed_zero3", "--work-dir", "two")  # under torchrun, which our launcher doesn't replace
    jpeg = "train_dataloader.dataset.jpeg_quality=(75, 100)"
    said = train(leaf, *zero, "--cfg-options", *words(keyed(settings)), jpeg, NPROC_PER_NODE="2")
    assert len(logged(tmp_path / "two")) == 2, said  # 16 samples, 4 on each of two ranks
    assert read_config(str(tmp_path / "two" / f"{LEAF}.py")).train_dataloader.dataset.jpeg_quality == (75, 100)
