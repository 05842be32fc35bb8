"""What ZeRO is made to do in bfloat16.

No buffer is rounded, gradients are added up in float32, and ZeRO-1 holds the sums alone for the updates it makes.
"""

import json
import math
import os

import pytest
import torch

from tests.models.batches import build
from xtuner_plugins.engine.launch.launcher import training_processes
from xtuner_plugins.engine.run import strategy
from xtuner_plugins.engine.run.gradient_sums import hold_sums_alone, sum_gradients_as_told
from xtuner_plugins.engine.run.runtime import _build_no_cpu_op
from xtuner_plugins.engine.run.steps import unwrap
from xtuner_plugins.engine.run.transfer import read_state
from xtuner_plugins.settings import read_deepspeed

from ..forked import at_call, contents, fork_server, require_equal

MICRO_STEPS = 16
# bfloat16 has 8 significant bits: beside 256 its next number is 258, so that a 0.5 that is added to 256 is lost.
GRADIENTS = [256.0] + [0.5] * (MICRO_STEPS - 1)


def take_two_steps(name, env, out):
    """One rank: a step of plain descent at rate 1 by `GRADIENTS`, whose figures it writes, and one by NaN."""
    os.environ |= env
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    _build_no_cpu_op()
    deepspeed.init_distributed(dist_backend="gloo")
    settings = {**read_deepspeed(f"deepspeed_{name}"), "fp16": {"enabled": False}, "bf16": {"enabled": True}}
    settings |= {"gradient_accumulation_steps": MICRO_STEPS, "train_micro_batch_size_per_gpu": 1}
    model = torch.nn.Linear(8, 8).bfloat16()  # the second rank's share is a part of the weight, and the bias
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    descent = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=descent, config={**settings, "gradient_clipping": 0.0}
    )
    sum_gradients_as_told(optimizer)
    hold_sums_alone(engine)
    strategy._keep_norms_that_are_not_finite(optimizer)
    found = []
    for gradients in (GRADIENTS, [math.nan] * MICRO_STEPS):
        for number, gradient in enumerate(gradients, 1):
            engine.set_gradient_accumulation_boundary(number == MICRO_STEPS)
            engine.backward((engine(torch.eye(8).bfloat16()) * gradient).sum(), scale_wrt_gas=False)
        engine.step()
        moved = [(-safe_get_full_fp32_param(each)).unique().tolist() for each in model.parameters()]
        found.append([*moved, float(engine.get_global_grad_norm())])
    if env["RANK"] == "0":
        out.write_text(json.dumps(found))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_16_micro_steps_are_summed_in_float32_and_norms_that_are_not_finite_told(tmp_path, name):
    _, envs = training_processes([], {"NPROC_PER_NODE": "2"}, None)
    ranks = [fork_server().Process(target=take_two_steps, args=(name, env, tmp_path / "found")) for env in envs]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, (*_, norm) = json.loads((tmp_path / "found").read_text())
    # Each of 64 weights moves by the sum, 263.5, each of 8 biases by 8 rows of it: 263.5 x sqrt(64 + 8 x 64) = 6324.
    assert first == [[263.5], [8 * 263.5], 6324.0] and not math.isfinite(norm)


CASE = dict(dtype="bfloat16", batch_size=2, accumulative_counts=2, max_grad_norm=0.5, save_steps=2)


def require_whole_buffers(loop, *_):
    """RoPE multiplies its frequencies by positions: rounded ones turn far tokens by radians."""
    network = unwrap(loop.runner.model)
    buffers = dict(network.named_buffers())
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert any(buffer.dtype == torch.float32 for buffer in buffers.values())
    require_equal(buffers, dict(build(loop.runner.cfg.model.base, dtype="bfloat16").named_buffers()))


def require_no_gradients(network, *_):
    assert all(p.grad is None for p in network.parameters())


def as_ours():
    at_call("engine.run.loops.PlannedTrainLoop.run_iter", 2, require_whole_buffers)
    at_call("models.vlm.VisionLanguageModel.forward", None, require_no_gradients)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_buffer_is_rounded_and_no_gradient_held_between_micro_steps(train, stage):
    """Its float32 masters go on bit-equal, and without DeepSpeed nearly so."""
    run = train("run", deepspeed=f"deepspeed_zero{stage}", prepare=as_ours, **CASE)
    said = f"  strategy: ZeRO-{stage}, weights in bfloat16, gradients summed in float32\n"
    assert said in run.output
    resume, left = ("--resume", str(run.saved(2))), contents(run.saved(4))
    again = train("again", deepspeed=f"deepspeed_zero{stage}", extra=resume, **CASE)
    assert again.logged() == run.logged()[2:] and min(run.logged("grad_norm")) > 0.5  # clipped
    require_equal(contents(again.saved(4)), left)
    assert any((value != value.bfloat16()).any() for key, value in left.items() if key.startswith("weight"))
    if stage == 1:
        plain = train("plain", extra=resume, **CASE)
        assert plain.logged() == pytest.approx(run.logged()[2:], rel=0.02)
        weights = read_state(plain.saved(4), with_optimizer=False).weights
        assert weights.keys() == {key.removeprefix("weight ") for key in left if key.startswith("weight ")}
