"""Tiny towers in the layouts that transformers saves."""

import pytest
import torch
import transformers

from xtuner_plugins.toy.vision_towers import NAMES, write_tower


@pytest.mark.parametrize("kind", NAMES)
def test_a_tower_reopens_equal(kind, tmp_path):
    tower = write_tower(tmp_path, kind)
    again = getattr(transformers, f"{NAMES[kind]}VisionModel").from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tower.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(parameter.std() > 0.01 for parameter in tower.parameters() if parameter.dim() > 1)
