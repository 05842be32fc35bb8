"""Small runs: ``train(name, **settings)`` in the test's folder, ``once`` in the folder of its file (made once)."""

import pytest

from tests.process_table import end_all

from .forked import Trainer, write_dataset
from .started import OURS, Started


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """(annotation file, image folder) of 16 samples: four steps of four."""
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(toy_base, data, tmp_path):
    """As `Trainer`."""
    return Trainer(tmp_path, toy_base, data)


@pytest.fixture(scope="module")
def once(toy_base, data, tmp_path_factory):
    """As ``train``; the second call with a name returns the run of the first."""
    trainer, made = Trainer(tmp_path_factory.mktemp("once"), toy_base, data), {}
    return lambda name, *args, **case: made.get(name) or made.setdefault(name, trainer(name, *args, **case))


@pytest.fixture
def start(toy_base, data, tmp_path):
    """start(command, ...) -> `Started` in the test's folder."""
    started = []

    def start(command=OURS, **case):
        started.append(Started(tmp_path / "run", toy_base, data, command=command, **case))
        return started[-1]

    yield start
    for run in started:
        end_all(run.mark)
