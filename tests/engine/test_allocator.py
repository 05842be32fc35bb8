"""Segments that grow, on CUDA, unless the user has said otherwise."""

import os

import pytest

from xtuner_plugins.engine import runtime
from xtuner_plugins.engine.allocator import EXPANDABLE, VARIABLES, allocator_settings


def test_segments_grow_on_a_gpu():
    assert allocator_settings({}, has_gpu=True) == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert allocator_settings({}, has_gpu=False) == {}


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(name):
    assert allocator_settings({name: "max_split_size_mb:128"}, has_gpu=True) == {}


def test_a_process_of_xtuner_sets_it_itself(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(runtime, "_end_with_xtuner", lambda: None)
    runtime.prepare_runtime("base")
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == EXPANDABLE
