"""AdamW as the configs build it, others by their names in MMEngine, and which checkpoints each goes on from."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.run.optimizers import build_adamw, describe_optimizer
from xtuner_plugins.engine.run.resume import optimizer_of, settle_start
from xtuner_plugins.settings import ConfigError

from ..forked import train_forked
from ..parallel_case import write_dataset


@pytest.mark.parametrize("has_gpu, shown", [(False, "AdamW of torch"), (True, "AdamW of torch, fused")])
def test_adamw_is_fused_where_there_is_a_gpu(monkeypatch, has_gpu, shown):
    """PyTorch has the fused kernel on a CPU, too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    options = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    built = build_adamw([torch.nn.Parameter(torch.zeros(1))], **options)
    assert type(built) is torch.optim.AdamW and describe_optimizer(built) == shown
    assert {key: built.param_groups[0][key] for key in options} == options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


EIGHT_BIT = {"optim_wrapper.optimizer.type": "AdamW8bit", "optim_wrapper.paramwise_cfg.part_lr.projector": 5e-4}


def test_a_run_in_eight_bits_resumes_exactly(toy_base, data, tmp_path):
    options = {**EIGHT_BIT, "default_hooks.checkpoint.interval": 2}
    whole = train_forked(tmp_path / "run", toy_base, data, options=options)
    assert whole.ok and "  optimizer: AdamW8bit of bitsandbytes\n" in whole.output, whole.output[-2000:]
    halfway = str(tmp_path / "run" / "iter_2.pth")
    resumed = train_forked(tmp_path / "resumed", toy_base, data, options=options, extra=("--resume", halfway))
    assert resumed.ok, resumed.output[-2000:]
    ends = [torch.load(tmp_path / name / "iter_4.pth", weights_only=False) for name in ("run", "resumed")]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    for number, state in ends[0]["optimizer"]["state"].items():
        for key, value in state["__bnb_optimizer_quant_state__"].items():
            assert torch.equal(value, ends[1]["optimizer"]["state"][number]["__bnb_optimizer_quant_state__"][key]), key


@pytest.mark.parametrize(
    "kind, name",
    [(kind, "AdamW") for kind in ("AdamW", "xtuner_plugins.engine.build_adamw", torch.optim.AdamW, build_adamw)]
    + [(kind, "PagedAdamW8bit") for kind in ("PagedAdamW8bit", type("PagedAdamW8bit", (), {}))],
)
def test_the_class_of_a_configs_optimizer(kind, name):
    assert optimizer_of({"optim_wrapper": {"optimizer": {"type": kind}}}) == name


@pytest.mark.parametrize(
    "kind, deepspeed, says",
    [
        ("AdamW8bit", "deepspeed_zero2", "'AdamW8bit' can't run under --deepspeed"),
        ("PagedAdamW32bit", None, "set it to 'AdamW32bit', or use --deepspeed deepspeed_zero2_offload"),
    ],
)
def test_optimizers_whose_state_would_not_come_back_are_refused(kind, deepspeed, says):
    args = SimpleNamespace(resume=None, work_dir="none", deepspeed=deepspeed)
    with pytest.raises(ConfigError, match=says):
        settle_start(Config({"optim_wrapper": {"optimizer": {"type": kind}}}), args)
