"""Small runs: ``train(name, **settings)`` in the test's folder, ``once`` in the folder of its file (made once)."""

import functools

import pytest

from .forked import Trainer
from .parallel_case import write_dataset


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

    @functools.wraps(trainer.__call__)
    def run(name, *args, **case):
        if name not in made:
            made[name] = trainer(name, *args, **case)
        return made[name]

    return run
