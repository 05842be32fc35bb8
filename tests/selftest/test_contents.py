"""Checkpoints that differ in a bit are told apart, in weights and in optimizer state."""

import torch

from xtuner_plugins.selftest.contents import differing_tensors


def saved(weight=1.0, moment=2.0):
    state = {0: {"exp_avg": torch.full((2,), moment), "step": torch.tensor(3.0)}}
    return {"state_dict": {"w": torch.full((2, 2), weight)}, "optimizer": {"state": state}, "meta": {"iter": 1}}


def test_plain_files(tmp_path):
    for name, content in {"a": saved(), "b": saved(), "w": saved(1 + 2**-23), "m": saved(moment=2.5)}.items():
        torch.save(content, tmp_path / name)
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == []
    assert differing_tensors(tmp_path / "a", tmp_path / "w") == ["state_dict/w"]
    assert differing_tensors(tmp_path / "a", tmp_path / "m") == ["optimizer/state/0/exp_avg"]


def test_directories(tmp_path):
    for name, value in {"a": 1.0, "b": 1.0, "c": 2.0}.items():
        (tmp_path / name / "step").mkdir(parents=True)
        torch.save({"module": [torch.tensor(value)]}, tmp_path / name / "step" / "rank_0.pt")
    torch.save({"more": torch.tensor(0)}, tmp_path / "c" / "step" / "rank_1.pt")
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == []
    assert differing_tensors(tmp_path / "a", tmp_path / "c") == ["rank_0.pt/module/0", "rank_1.pt/more"]
