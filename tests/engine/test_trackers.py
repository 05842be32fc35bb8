"""The setting ``tracker``: TensorBoard's files hold what was logged, and each other name builds its own backend."""

import sys
from types import ModuleType

import pytest
from mmengine.registry import VISBACKENDS, VISUALIZERS
from mmengine.visualization import LocalVisBackend, MLflowVisBackend, TensorboardVisBackend, WandbVisBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xtuner_plugins import ranges
from xtuner_plugins.engine.trackers import TrackingVisualizer, backends

from .forked import train_forked
from .parallel_case import logged, write_dataset


def test_a_run_writes_events_by_default(toy_base, tmp_path):
    run = train_forked(tmp_path / "run", toy_base, write_dataset(tmp_path / "data"))
    assert run.ok, run.output[-2000:]
    (events,) = (tmp_path / "run").glob("*/vis_data/events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    for key in ("loss", "lr"):
        scalars, expected = found.Scalars(key), logged(tmp_path / "run", key)
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-6)  # float32 in the file


@pytest.mark.parametrize(
    "tracker, backend",
    [("tensorboard", TensorboardVisBackend), ("wandb", WandbVisBackend), ("mlflow", MLflowVisBackend), ("none", None)],
)
def test_each_name_builds_its_backend(tracker, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges.importlib.util, "find_spec", lambda name: True)
    settings = dict(type=TrackingVisualizer, name=f"visualizer_{tracker}", tracker=tracker, save_dir=str(tmp_path))
    visualizer = VISUALIZERS.build(dict(settings, vis_backends=[dict(type=LocalVisBackend)]))
    built = [type(each) for each in visualizer._vis_backends.values()]
    assert built == [LocalVisBackend, *([backend] if backend else [])]  # none of them starts before the first number


def test_swanlab_brings_its_own_backend(monkeypatch):
    package = {name: ModuleType(name) for name in ("swanlab", "swanlab.integration", "swanlab.integration.mmengine")}
    package["swanlab.integration.mmengine"].SwanlabVisBackend = type("SwanlabVisBackend", (LocalVisBackend,), {})
    for name, module in package.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ranges.importlib.util, "find_spec", lambda name: True)
    (backend,) = backends("swanlab")
    assert type(VISBACKENDS.build(dict(backend, save_dir="x"))).__name__ == "SwanlabVisBackend"


def test_an_unknown_name_is_refused():
    with pytest.raises(ranges.RangeError, match="tracker='comet' is not known; it is one of: tensorboard, wandb"):
        TrackingVisualizer(tracker="comet")
