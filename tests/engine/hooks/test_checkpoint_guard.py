"""A checkpoint of another model is refused, and nothing else is."""

from types import SimpleNamespace

import pytest
import torch

from xtuner_plugins.engine import CheckpointGuardHook


@pytest.fixture
def check():
    runner = SimpleNamespace(model=torch.nn.Linear(3, 2), optim_wrapper=None)
    return lambda checkpoint: CheckpointGuardHook().after_load_checkpoint(runner, checkpoint)


def test_a_checkpoint_of_the_model_passes(check):
    check({"state_dict": torch.nn.Linear(3, 2).state_dict()})


def test_a_deepspeed_directory_is_the_strategy_s(check):
    check({"module": {"other": torch.ones(1)}})


@pytest.mark.parametrize(
    "state, message",
    [
        ({"weight": torch.ones(2, 3)}, "missing bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "scale": torch.ones(1)}, "unknown scale"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, r"weight is \(3, 3\), the model has \(2, 3\)"),
    ],
)
def test_other_parameters_are_refused(check, state, message):
    with pytest.raises(ValueError, match=f"another choice of trained parts: {message}"):
        check({"state_dict": state})
