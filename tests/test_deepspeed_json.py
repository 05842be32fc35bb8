"""Names of ``--deepspeed``, and that our settings add micro-steps up in float32, which the live engines show."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import xtuner

from tests.engine.forked import fork_server
from xtuner_plugins.processes import free_port
from xtuner_plugins.settings import DEEPSPEED, ConfigError, read_deepspeed

NAMES = ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
XTUNERS = Path(xtuner.__file__).parent / "configs" / "deepspeed"
MICRO_STEPS, RANKS = 16, 2
# bfloat16 has 8 significant bits: beside 256 its next number is 258, so that a 0.5 that is added to 256 is lost.
GRADIENTS = [256.0] + [0.5] * (MICRO_STEPS - 1)


def test_names_and_files(tmp_path, monkeypatch):
    """Names are XTuner's; a file of one's own stays."""
    assert set(DEEPSPEED) == {f"deepspeed_{name}" for name in NAMES} == {path.stem for path in XTUNERS.glob("*.json")}
    offloads = [
        name for name in NAMES if "offload_optimizer" in read_deepspeed(f"deepspeed_{name}")["zero_optimization"]
    ]
    assert offloads == ["zero2_offload", "zero3_offload"]
    monkeypatch.chdir(tmp_path)
    for name, text in {"deepspeed_zero2": "{}", "broken.json": "{", "list.json": "[1]"}.items():
        Path(name).write_text(text)
    assert read_deepspeed("deepspeed_zero2") == {}
    said = {"zero3": "did you mean deepspeed_zero3", "ffff": "no such file or name; give a JSON file or one of"}
    for value, message in {**said, **dict.fromkeys(("broken.json", "list.json"), "holds no JSON object")}.items():
        with pytest.raises(ConfigError, match=message):
            read_deepspeed(value)


def _sum_micro_steps(path, rank, port, out, gradients=GRADIENTS):
    """One rank: sums `GRADIENTS` in bfloat16 weights, takes a step of plain descent at rate 1, writes what moved."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}.items():
        os.environ[name] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from xtuner_plugins.engine.hooks.run_contract import describe_engine
    from xtuner_plugins.engine.run.gradient_sums import hold_sums_alone, sum_gradients_as_told
    from xtuner_plugins.engine.run.runtime import _build_no_cpu_op
    from xtuner_plugins.engine.run.strategy import _keep_norms_that_are_not_finite

    _build_no_cpu_op()
    deepspeed.init_distributed(dist_backend="gloo")
    settings = json.loads(Path(path).read_text())
    settings |= {"fp16": {"enabled": False}, "bf16": {"enabled": True}, "gradient_clipping": 0.0}
    settings |= {"gradient_accumulation_steps": MICRO_STEPS, "train_micro_batch_size_per_gpu": 1}
    model = torch.nn.Linear(8, 8, bias=False).bfloat16()
    torch.nn.init.zeros_(model.weight)
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=settings
    )
    sum_gradients_as_told(optimizer)
    hold_sums_alone(engine)
    _keep_norms_that_are_not_finite(optimizer)
    for step, gradient in enumerate(gradients):
        engine.set_gradient_accumulation_boundary(step == MICRO_STEPS - 1)
        loss = (engine(torch.eye(8, dtype=torch.bfloat16)) * gradient).sum()
        engine.backward(loss, scale_wrt_gas=False)
    engine.step()
    moved = -safe_get_full_fp32_param(model.weight)
    if rank == 0:
        found = {"moved": moved.unique().tolist(), "said": describe_engine(engine)}
        Path(out).write_text(json.dumps({**found, "norm": float(engine.get_global_grad_norm())}))


def summed(path, tmp_path, **case):
    shared = free_port(), tmp_path / "found"
    made = fork_server().Process
    ranks = [made(target=_sum_micro_steps, args=(str(path), rank, *shared), kwargs=case) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * RANKS
    return json.loads((tmp_path / "found").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_16_micro_steps_are_summed_in_float32(tmp_path, name):
    found = summed(DEEPSPEED[f"deepspeed_{name}"], tmp_path)
    assert found["moved"] == [sum(GRADIENTS)]
    assert found["said"] == f"ZeRO-{name[4]}, weights in bfloat16, gradients summed in float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_a_norm_that_is_not_finite_is_reported(tmp_path, name):
    found = summed(DEEPSPEED[f"deepspeed_{name}"], tmp_path, gradients=[float("nan")] * MICRO_STEPS)
    assert not math.isfinite(found["norm"])
