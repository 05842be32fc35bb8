"""Every way to run gives the same training: one process, DDP, ZeRO 1 to 3."""

import json
import sys
from pathlib import Path

import pytest

from xtuner_plugins.engine.hooks.run_contract import CONTRACT_FILE

from ..parallel_case import logged, write_dataset
from ..parallel_case import train as command

pytestmark = pytest.mark.slow

# Sums of float32 in another order: a few units in the last place of a loss near 6, grown over four optimizer steps.
TOLERANCE = 1e-5
# Warm-up, clipping at a norm that every step exceeds, and four groups.
RECIPE = dict(warmup_ratio=0.5, max_grad_norm=0.5, projector_lr=5e-4, weight_decay=0.1)
GROUPS = {"optim_wrapper.paramwise_cfg.decay_norms_and_biases": False}


@pytest.fixture(scope="module")
def reference(once):
    """A run of one process without DeepSpeed, which takes 4 samples at a time."""
    run = once("one", options=GROUPS, **RECIPE)
    losses = run.logged()
    assert len(losses) == 4 and losses[-1] < losses[0] and min(run.logged("grad_norm")) > 0.5
    return run


@pytest.mark.parametrize(
    "processes, stage, batch_size, micro_batches",
    [
        (1, None, 1, 4),
        (2, None, 2, 1),
        (2, None, 1, 2),
        (1, 2, 2, 2),
        (2, 1, 1, 2),
        (2, 2, 2, 1),
        (2, 2, 1, 2),
        (2, 3, 1, 2),
    ],
)
def test_same_steps_as_one_process(reference, train, processes, stage, batch_size, micro_batches):
    """4 x 1 = 1 x 4 = 2 x 2, on one rank or two: the same steps, to the gradient norm, and the same parts of the loss.

    The optimizers hold the same groups, as the contract reads them from the live objects.
    """
    cut = dict(batch_size=batch_size, accumulative_counts=micro_batches, processes=processes)
    run = train("run", deepspeed=stage and f"deepspeed_zero{stage}", options=GROUPS, **cut, **RECIPE)
    for key in ("loss", "grad_norm", "lr", "supervised_tokens", "loss_by_dataset/train"):
        assert run.logged(key) == pytest.approx(reference.logged(key), rel=1e-5)
    contract, expected = (json.loads((each.work_dir / CONTRACT_FILE).read_text()) for each in (run, reference))
    strategy = f"ZeRO-{stage}, weights in float32" if stage else f"DDP on {processes} ranks"
    assert contract["strategy"].startswith(strategy if stage or processes > 1 else "one process")
    groups = [sorted(map(str, each["optimizer"]["groups"])) for each in (contract, expected)]
    assert groups[0] == groups[1] and len(groups[0]) == 4 and contract["parts"] == expected["parts"]
    assert contract["run"]["tokens"] == expected["run"]["tokens"]


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_a_rank_that_never_sees_an_image(train, tmp_path, stage):
    """Unshuffled, the second of two ranks gets every odd sample: text only, beside a rank with images.

    The encoder trains and recomputes too, in two micro-batches per step.
    """
    data = write_dataset(tmp_path / "odd", num_samples=8, text_only=lambda index: index % 2 == 1)
    case = dict(freeze_visual_encoder=False, gradient_checkpointing=True, accumulative_counts=2, data=data)
    case["options"] = {"train_dataloader.sampler.shuffle": False}
    alone = train("alone", batch_size=2, **case)
    split = train("split", batch_size=1, processes=2, deepspeed=stage and f"deepspeed_zero{stage}", **case)
    assert split.logged() == pytest.approx(alone.logged(), abs=TOLERANCE)


ENCODER = {
    "gradient_checkpointing": True,
    "lines": "from peft import LoraConfig\nmodel.visual_encoder_lora = dict(type=LoraConfig, r=4)\n",
}


@pytest.mark.parametrize("changes", [{"freeze_projector": False}, {"freeze_projector": True}, ENCODER])
def test_lora_under_zero_3(train, changes):
    """Frozen and trained weights in one block, which is recomputed; or nothing trained before the first block."""
    case = dict(leaf="toy_finetune_lora", accumulative_counts=2, **changes)
    alone, split = train("alone", **case), train("split", processes=2, deepspeed="deepspeed_zero3", **case)
    assert ("its activations are kept" in split.output) == (changes is ENCODER)
    for key in ("loss", "grad_norm"):
        assert split.logged(key) == pytest.approx(alone.logged(key), rel=1e-5)


def test_other_methods_in_two_processes(reference, train):
    """Beside packed weights the first loss is near the unquantized one, and it falls; packs train every sample once."""
    for deepspeed in (None, "deepspeed_zero2"):
        losses = train(f"qlora {deepspeed}", "toy_finetune_qlora", processes=2, deepspeed=deepspeed).logged()
        assert losses[0] == pytest.approx(reference.logged()[0], rel=0.05) and losses[-1] < losses[0]
    packs = dict(leaf="toy_finetune_packed", batch_size=1, pack_tokens=400)
    packed = train("packed", processes=2, deepspeed="deepspeed_zero2", **packs).logged("supervised_tokens")
    assert sum(packed) == sum(reference.logged("supervised_tokens")) > 0


def test_xtuner_train_itself(reference, toy_base, data, tmp_path):
    xtuner = str(Path(sys.executable).parent / "xtuner")
    options = {"optim_wrapper.paramwise_cfg.part_lr.projector": 5e-4, "optim_wrapper.optimizer.weight_decay": 0.1}
    options |= {"param_scheduler.warmup_ratio": 0.5, "optim_wrapper.clip_grad.max_norm": 0.5, **GROUPS}
    run = command(tmp_path, toy_base, data, processes=2, options=options, command=(xtuner, "train"))
    assert logged(tmp_path) == pytest.approx(reference.logged(), abs=TOLERANCE), run.stdout + run.stderr
