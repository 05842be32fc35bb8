"""The heaviest batch first: it is the heaviest, it leaves nothing behind, and it ends a run that would run out."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from xtuner_plugins.datasets import MultimodalDataset, PackBatchSampler, PlanSampler, collate, collate_packed
from xtuner_plugins.datasets.plan.plan import plan_of
from xtuner_plugins.engine.rehearsal import heaviest_batch
from xtuner_plugins.settings import DEEPSPEED

from .forked import train_forked
from .parallel_case import edited_config, logged, write_dataset
from .test_going_on import contents, kill_before, options, require_equal

FIRST = {"train_cfg.heaviest_first": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_samples=15)


@pytest.fixture
def recipe(tmp_path):
    settings = dict(accumulative_counts=4, lora_dropout=0.1, warmup_ratio=0.3, max_epochs=2, save_steps=3)
    return edited_config(tmp_path, "toy_finetune_lora", **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_heaviest_that_is_left_and_the_plan_stays(toy_base, data, tmp_path, packed):
    dataset = MultimodalDataset(str(toy_base), str(data[0]), str(data[1]), max_length=400, cache_dir=str(tmp_path))
    sampler = PlanSampler(dataset, seed=3)
    if packed:
        loader = DataLoader(dataset, batch_sampler=PackBatchSampler(sampler, max_tokens=400), collate_fn=collate_packed)
    else:
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=collate)
    plan, digest = plan_of(loader), plan_of(loader).digest
    sizes = [(sum(map(len, _tokens(batch))), int(batch["num_tiles"].sum())) for batch in loader]
    plan.seek(0)
    step = 1 if packed else 2
    for batches in (0, 3, len(sizes) - 1):
        found = heaviest_batch(loader, plan, 0, batches * step)
        assert (sum(map(len, _tokens(found))), int(found["num_tiles"].sum())) == max(sizes[batches:])
        assert plan.digest == digest
    plan.seek(0)
    assert heaviest_batch(loader, plan, 0, 15 if not packed else len(sizes))  # the end: of the next epoch


def _tokens(batch):
    if "cu_seqlens" in batch:
        return [batch["input_ids"][0]]
    return [row[kept] for row, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_a_sampler_without_plan_is_refused():
    loader = DataLoader([1, 2, 3])
    with pytest.raises(ValueError, match="heaviest_first: the batches of SequentialSampler aren't known"):
        heaviest_batch(loader, plan_of(loader), 0, 0)


@pytest.mark.parametrize(
    "processes, deepspeed",
    [
        (1, None),
        pytest.param(2, None, marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero1", marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param(2, "deepspeed_zero3", marks=pytest.mark.slow),
    ],
)
def test_training_after_it_is_bit_equal(toy_base, data, recipe, tmp_path, processes, deepspeed):
    """Also in a run that is killed and resumed, and rehearses both times."""
    case = dict(processes=processes, deepspeed=deepspeed, config=recipe)
    plain = train_forked(tmp_path / "plain", toy_base, data, options=options(processes), **case)
    assert plain.ok and "heaviest batch first" not in plain.output, plain.output[-3000:]
    case["options"] = {**options(processes), **FIRST}
    killed = train_forked(tmp_path / "first", toy_base, data, prepare=partial(kill_before, 5), **case)
    assert killed.codes == [-signal.SIGKILL] * processes
    assert killed.output.count("heaviest batch first: 1 samples of ") == 1
    resumed = train_forked(tmp_path / "first", toy_base, data, extra=("--resume",), **case)
    assert resumed.ok and resumed.output.count("heaviest batch first: ") == 1, resumed.output[-3000:]
    assert logged(tmp_path / "first") == logged(tmp_path / "plain")[3:]
    require_equal(contents(tmp_path / "first" / "iter_8.pth"), contents(tmp_path / "plain" / "iter_8.pth"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "deepspeed, half",
    [("deepspeed_zero1", True), ("deepspeed_zero2_offload", True), ("deepspeed_zero3_offload", False)],
)
def test_optimizers_that_hold_their_gradients_elsewhere(toy_base, data, tmp_path, deepspeed, half):
    """ZeRO-1 has a class of its own in bfloat16; offloaded gradients lie in the optimizer's memory."""
    settings = json.loads(DEEPSPEED[deepspeed].read_text()) | {"bf16": {"enabled": half}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    case = dict(deepspeed=str(tmp_path / "settings.json"))
    for name, more in (("plain", {}), ("first", FIRST)):
        run = train_forked(
            tmp_path / name, toy_base, data, options={**options(), "train_cfg.max_epochs": 1, **more}, **case
        )
        assert run.ok and half == ("weights in bfloat16" in run.output), run.output[-3000:]
    for key in ("loss", "grad_norm"):
        values = logged(tmp_path / "first", key)
        assert len(values) == 4 and values == logged(tmp_path / "plain", key)


def exhaust(call):
    """The model's n-th forward pass (from 0) on rank 0 asks for more memory than there is."""
    from xtuner_plugins.models import VisionLanguageModel

    forward, calls = VisionLanguageModel.forward, []

    def exhausting(model, *args, **kwargs):
        calls.append(1)
        if len(calls) == call + 1 and os.environ.get("RANK", "0") == "0":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(model, *args, **kwargs)

    VisionLanguageModel.forward = exhausting


def test_memory_that_runs_out_before_the_first_step(toy_base, data, recipe, tmp_path):
    case = dict(config=recipe, options={**options(), **FIRST})
    run = train_forked(tmp_path / "run", toy_base, data, prepare=partial(exhaust, 0), **case)
    assert run.codes == [1]
    [line] = run.errors
    assert "before the first step, the heaviest batch: out of memory on rank 0 with 1 samples of " in line
    assert "max_tiles" in line and "nothing was saved yet" in line and "Traceback" not in run.output


def test_memory_that_runs_out_in_a_step(toy_base, data, recipe, tmp_path):
    run = train_forked(
        tmp_path / "run", toy_base, data, prepare=partial(exhaust, 4 * 3 + 2), config=recipe, options=options()
    )
    assert run.codes == [1]
    [line] = run.errors
    assert "step 4: out of memory on rank 0 with 1 samples of " in line and line.count(f"{data[0]}:") == 1
    assert f"The last good checkpoint is {tmp_path / 'run' / 'iter_3.pth'}" in line


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
def test_no_rank_waits_for_one_without_memory(toy_base, data, recipe, tmp_path, deepspeed):
    case = dict(config=recipe, options={**options(2), **FIRST}, processes=2, deepspeed=deepspeed)
    run = train_forked(tmp_path / "run", toy_base, data, prepare=partial(exhaust, 0), **case)
    assert run.codes[0] == 1 and len(run.errors) == 1 and run.codes[1] != 0
