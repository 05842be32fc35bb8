"""The setting ``optimizer``: which class it builds, what its state is, and that a resumed run goes on exactly."""

import re

import pytest
import torch

from xtuner_plugins.checkpoints.errors import CheckpointError
from xtuner_plugins.checkpoints.io.reader import load_pickle
from xtuner_plugins.engine.optimizers import FusedAdamW, build_adamw, can_fuse, describe_optimizer
from xtuner_plugins.engine.resume import check_loadable
from xtuner_plugins.ranges import BITSANDBYTES, OPTIMIZER_NAMES, RangeError

from .forked import train_forked
from .parallel_case import train, write_dataset

PAGED = [name for name, (_, is_paged) in BITSANDBYTES.items() if is_paged]
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = pytest.param("cuda", marks=on_gpu)
OPTIONS = dict(lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1)
SIZE = 400  # its square is above the 4096 numbers from which bitsandbytes takes 8 bits, and its 100,000 for pages


def parameters(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(SIZE, SIZE), (8,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


def groups(weight, bias):
    return [{"params": [weight]}, {"params": [bias], "lr": 1e-3, "weight_decay": 0.0}]


def take_steps(optimizer, params, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        optimizer.step()


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_adamw_is_pytorchs(device):
    ours, theirs = parameters(device), parameters(device)
    built, plain = build_adamw(groups(*ours), **OPTIONS), torch.optim.AdamW(groups(*theirs), **OPTIONS)
    take_steps(built, ours, range(3))
    take_steps(plain, theirs, range(3))
    # The fused kernel rounds in another order: a few units in the last place of a step of lr.
    tolerance = 0 if device == "cpu" else 1e-6
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=0)
    assert [group["fused"] for group in built.param_groups] == [True if device == "cuda" else None] * 2
    assert describe_optimizer(built) == f"AdamW of PyTorch, {'fused' if device == 'cuda' else 'not fused'}"
    assert can_fuse(ours) is (device == "cuda") and not can_fuse([])


def test_a_checkpoint_of_a_fused_run_goes_on_without_a_gpu():
    params, other = parameters(), parameters()
    optimizer, resumed = build_adamw(params, **OPTIONS), build_adamw(other, **OPTIONS)
    take_steps(optimizer, params, range(1))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True
    resumed.load_state_dict(state)
    take_steps(resumed, other, [1])
    assert resumed.param_groups[0]["fused"] is None


@on_gpu[0]
@on_gpu[1]
def test_a_checkpoint_of_a_cpu_run_goes_on_fused():
    params, other = parameters(), parameters("cuda")
    optimizer, resumed = build_adamw(params, **OPTIONS), build_adamw(other, **OPTIONS)
    take_steps(optimizer, params, [0])
    resumed.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for left, right in zip(other, params, strict=True):
            left.copy_(right)
    take_steps(optimizer, params, [1, 2])
    take_steps(resumed, other, [1, 2])
    assert resumed.param_groups[0]["fused"] is True
    for left, right in zip(other, params, strict=True):
        torch.testing.assert_close(left.cpu(), right, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "device, name", [("cpu", "adamw_8bit"), *(pytest.param("cuda", n, marks=on_gpu) for n in BITSANDBYTES)]
)
def test_bitsandbytes_goes_on_exactly(device, name, tmp_path):
    bits, is_paged = BITSANDBYTES[name]
    params = parameters(device)
    optimizer = build_adamw(groups(*params), name, **OPTIONS)
    take_steps(optimizer, params, range(2))
    torch.save([optimizer.state_dict(), [p.detach().cpu() for p in params]], tmp_path / "state.pt")
    take_steps(optimizer, params, [2, 3])
    state, weights = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
    others = [torch.nn.Parameter(weight.to(device)) for weight in weights]
    resumed = build_adamw(groups(*others), name, **OPTIONS)
    resumed.load_state_dict(state)
    take_steps(resumed, others, [2, 3])
    assert all(torch.equal(left, right) for left, right in zip(params, others, strict=True))
    for one in (optimizer, resumed):
        moments = [state["state1"] for state in one.state.values()]
        assert moments[0].dtype == (torch.uint8 if bits == 8 else torch.float32) and moments[1].dtype == torch.float32
        assert getattr(moments[0], "is_paged", False) is is_paged
        assert describe_optimizer(one) == f"AdamW of bitsandbytes, moments in {bits} bits" + ", paged" * is_paged


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_eight_bits_are_near_float32(device):
    """A moment keeps about two digits: after ten steps of lr the weights differ by less than one of them."""
    ours, theirs = parameters(device), parameters(device)
    take_steps(build_adamw(ours, "adamw_8bit", **OPTIONS), ours, range(10))
    take_steps(build_adamw(theirs, **OPTIONS), theirs, range(10))
    moved = (theirs[0] - parameters(device)[0]).abs().mean()
    assert (ours[0] - theirs[0]).abs().mean() < 0.1 * moved


def test_what_is_refused(monkeypatch):
    with pytest.raises(
        RangeError, match="optimizer='sgd' is not known; it is one of: adamw, adamw_8bit, paged_adamw_8"
    ):
        build_adamw(parameters(), "sgd")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in PAGED:
        with pytest.raises(ValueError, match=f"optimizer='{name}' needs a GPU; on a CPU take adamw or adamw_8bit"):
            build_adamw(parameters(), name)
    for name in set(OPTIMIZER_NAMES) - set(PAGED):
        with pytest.raises(ValueError, match="learning rate"):
            build_adamw(parameters(), name, lr=-1.0)


def test_other_optimizers_are_described_by_their_class():
    assert describe_optimizer(torch.optim.SGD(parameters(), lr=1.0)) == "SGD of torch"
    assert isinstance(build_adamw(parameters()), FusedAdamW)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


EIGHT_BIT = {"optim_wrapper.optimizer.name": "adamw_8bit", "optim_wrapper.paramwise_cfg.part_lr.projector": 5e-4}


def test_a_run_in_eight_bits_resumes_exactly(toy_base, data, tmp_path):
    options = {**EIGHT_BIT, "default_hooks.checkpoint.interval": 2}
    whole = train_forked(tmp_path / "run", toy_base, data, options=options)
    assert whole.ok, whole.output[-2000:]
    assert "  optimizer: AdamW of bitsandbytes, moments in 8 bits\n" in whole.output
    assert len(set(re.findall(r"optimizer group \d+: .* lr (\S+),", whole.output))) == 2
    halfway = str(tmp_path / "run" / "iter_2.pth")
    resumed = train_forked(tmp_path / "resumed", toy_base, data, options=options, extra=("--resume", halfway))
    assert resumed.ok, resumed.output[-2000:]
    ends = [torch.load(tmp_path / name / "iter_4.pth", weights_only=False) for name in ("run", "resumed")]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    for number, state in ends[0]["optimizer"]["state"].items():
        for key, value in state["__bnb_optimizer_quant_state__"].items():
            assert torch.equal(value, ends[1]["optimizer"]["state"][number]["__bnb_optimizer_quant_state__"][key]), key
    _refused_elsewhere(halfway, tmp_path)


def _refused_elsewhere(path, folder):
    """Its state goes to no other optimizer; its weights do."""
    content = load_pickle(path)
    assert content["optimizer"]["param_groups"][0]["state_format"] == "adamw_8bit"
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        check_loadable(path, "--resume", folder, deepspeed=False, needs_optimizer=True, optimizer=name)
    for name in ("adamw", "paged_adamw_32bit"):
        with pytest.raises(
            CheckpointError, match=f"holds the state of optimizer=adamw_8bit, which {name} can't read; "
        ):
            check_loadable(path, "--resume", folder, deepspeed=False, needs_optimizer=True, optimizer=name)
        check_loadable(path, "load_from", folder, deepspeed=False, needs_optimizer=False, optimizer=name)


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_deepspeed_would_cut_their_tables(name, toy_base, data, tmp_path):
    options = {"optim_wrapper.optimizer.name": name}
    done = train(tmp_path / "run", toy_base, data, options=options, deepspeed="deepspeed_zero2")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert f"optim_wrapper.optimizer.name='{name}' can't run under --deepspeed" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
