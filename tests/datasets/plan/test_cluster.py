"""Lengths measured on a local Ray cluster are those of one machine; Ray itself is optional."""

import functools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.process_table import MARK, end_all, marked, wait_until
from xtuner_plugins.datasets import MultimodalDataset, SettingError
from xtuner_plugins.datasets.plan import cluster
from xtuner_plugins.datasets.plan.cluster import measure_on_ray
from xtuner_plugins.datasets.plan.lengths import ARRAYS, LengthIndex

TWO_WORKERS = """
import json, sys
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.plan.cluster import measure_on_ray
from xtuner_plugins.datasets.plan import lengths
lengths.CHUNK = 5
dataset, done = MultimodalDataset(**json.loads(sys.argv[1])), []
print(measure_on_ray(dataset.measurings(), dataset.cache_dir, num_workers=2, progress=done.append), sum(done))
"""


@pytest.fixture
def settings(data_base, write_data, make_image, qa, tmp_path):
    """Two files of 38 and 7 records, some of them broken."""
    folder = make_image("a.png", 100, 90)
    records = [qa(f"Q{i}?", "A. " * (1 + i % 7), image=("a.png", "none.png")[i % 5 == 0]) for i in range(38)]
    paths = [write_data(records, "first.jsonl"), write_data(records[:6] + [{"text": 1}], "second.jsonl")]
    return {"base": str(data_base), "data_paths": paths, "image_folders": folder}


def test_without_ray_the_message_names_another_way(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    dataset = MultimodalDataset(**settings, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(SettingError, match="Ray isn't installed; pip install ray, or measure with --shard K/N"):
        measure_on_ray(dataset.measurings(), dataset.cache_dir)
    dataset.layout(num_workers=0)
    assert measure_on_ray(dataset.measurings(), dataset.cache_dir) == 45  # nothing is left to measure


def test_results_in_any_order_and_of_an_earlier_run_become_the_same_index(settings, tmp_path, monkeypatch):
    """With actors replaced by a loop in this process."""
    monkeypatch.setattr("xtuner_plugins.datasets.plan.lengths.CHUNK", 5)
    local = MultimodalDataset(**settings, cache_dir=str(tmp_path / "local"))
    local.layout(num_workers=0)
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    sys.modules["ray"].init = sys.modules["ray"].shutdown = lambda **options: None
    spread = []

    def backwards(ray, tasks, chunks, num_workers):
        spread.append(chunks)
        for chunk in reversed(chunks):
            if len(spread) == 1 and chunk == chunks[3]:
                raise SettingError("ray", "a node has gone")
            yield cluster.Measurer(*tasks).rows(*chunk)

    monkeypatch.setattr(cluster, "_spread", backwards)
    dataset = MultimodalDataset(**settings, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(SettingError, match="a node has gone"):
        measure_on_ray(dataset.measurings(), dataset.cache_dir)
    done = []
    assert measure_on_ray(dataset.measurings(), dataset.cache_dir, progress=done.append) == sum(done) == 45
    assert spread[1] == spread[0][:4]
    assert not list((tmp_path / "cache").glob("*/parts"))
    assert_same_index(dataset, local)


def assert_same_index(dataset, local):
    for ours, theirs in zip(dataset.measurings(), local.measurings(), strict=True):
        found = [
            LengthIndex.open(Path(side.cache_dir) / task.key(side.cache_dir)).directory
            for side, task in ((dataset, ours), (local, theirs))
        ]
        for name in (*[f"{array}.npy" for array in ARRAYS], "complaints.jsonl"):
            assert (found[0] / name).read_bytes() == (found[1] / name).read_bytes(), name


@functools.cache
def python_with_ray() -> Path:
    """An interpreter that has Ray and borrows everything else; kept in `XTUNER_PLUGINS_RAY`."""
    folder = Path(os.environ.get("XTUNER_PLUGINS_RAY", "~/.cache/xtuner_plugins/ray")).expanduser()
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", folder], check=True)
    own = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (own / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    if not done.exists():
        command = [python, "-m", "pip", "install", "--quiet", "ray"]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER)
        if installed.returncode:
            pytest.skip(f"Ray can't be installed: {installed.stderr.strip().splitlines()[-1:]}")
        done.touch()
    return python


@pytest.mark.slow
def test_a_local_cluster_of_two_workers_gives_the_same_index_and_ends(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("xtuner_plugins.datasets.plan.lengths.CHUNK", 5)
    local = MultimodalDataset(**settings, cache_dir=str(tmp_path / "local"))
    local.layout(num_workers=0)
    own = settings | {"cache_dir": str(tmp_path / "cache")}
    mark = str(tmp_path)
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)}
    command = [python_with_ray(), "-c", TWO_WORKERS, json.dumps(own)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS_AFTER)
        assert done.returncode == 0 and done.stdout.split()[-2:] == ["45", "45"], done.stderr[-3000:]
        assert wait_until(lambda: not marked(mark), HANGS_AFTER)
    finally:
        end_all(mark)
    assert_same_index(MultimodalDataset(**own), local)
