"""AdamW as the configs build it, others by their names in MMEngine, and which checkpoints each goes on from."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from xtuner_plugins.engine.run.optimizers import build_adamw, describe_optimizer
from xtuner_plugins.engine.run.resume import optimizer_of, settle_start
from xtuner_plugins.settings import ConfigError

from ..parallel_case import require_equal

PAGED, QUANTIZED = "PagedAdamW8bit", "__bnb_optimizer_quant_state__"


@pytest.mark.parametrize("has_gpu, shown", [(False, "AdamW of torch"), (True, "AdamW of torch, fused")])
def test_adamw_is_fused_where_there_is_a_gpu(monkeypatch, has_gpu, shown):
    """PyTorch has the fused kernel on a CPU, too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    options = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    built = build_adamw([torch.nn.Parameter(torch.zeros(1))], **options)
    assert type(built) is torch.optim.AdamW and describe_optimizer(built) == shown
    assert {key: built.param_groups[0][key] for key in options} == options


def test_a_run_in_eight_bits_resumes_exactly(train):
    case = dict(optimizer="AdamW8bit", projector_lr=5e-4, save_steps=2)
    whole = train("run", **case)
    resumed = train("resumed", extra=("--resume", str(whole.work_dir / "iter_2.pth")), **case)
    assert "  optimizer: AdamW8bit of bitsandbytes\n" in whole.output
    ends = [torch.load(run.work_dir / "iter_4.pth", weights_only=False) for run in (whole, resumed)]
    weights, states = [end["state_dict"] for end in ends], [end["optimizer"]["state"] for end in ends]
    packed = [{f"{n}.{k}": v for n, each in state.items() for k, v in each[QUANTIZED].items()} for state in states]
    require_equal(*weights)
    require_equal(*packed)


def test_the_class_of_a_configs_optimizer_and_those_whose_state_would_not_come_back():
    def settings(kind):
        return Config({"optim_wrapper": {"optimizer": {"type": kind}}})

    named = {kind: "AdamW" for kind in ("AdamW", "xtuner_plugins.engine.build_adamw", torch.optim.AdamW, build_adamw)}
    for kind, name in {**named, **dict.fromkeys(("PagedAdamW8bit", type("PagedAdamW8bit", (), {})), PAGED)}.items():
        assert optimizer_of({"optim_wrapper": {"optimizer": {"type": kind}}}) == name
    for kind, deepspeed, says in (
        ("AdamW8bit", "deepspeed_zero2", "'AdamW8bit' can't run under --deepspeed"),
        ("PagedAdamW32bit", None, "set it to 'AdamW32bit', or use --deepspeed deepspeed_zero2_offload"),
    ):
        with pytest.raises(ConfigError, match=says):
            settle_start(settings(kind), SimpleNamespace(resume=None, work_dir="none", deepspeed=deepspeed))
