"""The page follows checkpoints, goes on after a resume, and never stops a training."""

import json
import logging
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from xtuner_plugins.engine.curves import read_series
from xtuner_plugins.engine.hooks import report_page
from xtuner_plugins.engine.hooks.report_page import ReportPageHook, settings_of

from ..forked import train_forked
from ..parallel_case import write_dataset


def test_a_resumed_run_draws_the_steps_of_before_once(toy_base, tmp_path):
    data, options = write_dataset(tmp_path / "data"), {"default_hooks.checkpoint.interval": 2}
    first = train_forked(tmp_path / "run", toy_base, data, options={**options, "train_cfg.max_iters": 3})
    assert first.ok, first.output[-2000:]
    assert (tmp_path / "run/report.html").stat().st_size > 20_000 and (tmp_path / "run/loss.png").exists()
    resume = f"--resume={tmp_path / 'run/iter_2.pth'}"
    again = train_forked(tmp_path / "run", toy_base, data, options=options, extra=(resume,))
    assert again.ok, again.output[-2000:]
    assert [step for step, _ in read_series(tmp_path / "run")["loss"]] == [1, 2, 3, 4]
    contracts = sorted((tmp_path / "run").glob("*/run_contract.json"))
    assert [json.loads(path.read_text())["run"]["done"] for path in contracts] == [0, 2]


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(work_dir=str(tmp_path), cfg=Config(dict(optim_wrapper=dict(optimizer=dict(lr=1e-3)))))


def test_it_writes_after_a_checkpoint_and_at_the_end(runner, monkeypatch):
    written = []
    monkeypatch.setattr(report_page, "write_report", lambda work_dir, settings: written.append(settings))
    hook = ReportPageHook()
    hook.after_train_iter(runner, 0)
    assert written == []
    hook.before_save_checkpoint(runner, {})
    hook.after_train_iter(runner, 1)
    hook.after_train_iter(runner, 2)
    assert written == [{"lr": "0.001"}]
    hook.after_train(runner)
    assert len(written) == 2


def test_a_page_that_cannot_be_written_is_one_error_line_per_cause(runner, monkeypatch):
    said = []
    monkeypatch.setattr(report_page, "print_log", lambda text, logger, level: said.append((level, text)))
    causes = iter(["disk is full", "disk is full", "no font"])

    def fail(work_dir, settings):
        raise OSError(next(causes))

    monkeypatch.setattr(report_page, "write_report", fail)
    hook = ReportPageHook()
    for _ in range(3):
        hook.after_train(runner)
    assert said == [
        (logging.ERROR, f"report.html and loss.png not written: OSError: {cause}; training goes on")
        for cause in ("disk is full", "no font")
    ]


def test_settings_stand_under_their_short_names():
    data = dict(dataset=dict(data_paths=["a", "b"], repeat_times=None))
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(lr=1e-3)), train_dataloader=data, resume=True, odd=dict(a=1)))
    assert settings_of(cfg) == {"data_paths": "['a', 'b']", "lr": "0.001"}
