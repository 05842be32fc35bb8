"""Every way to run gives the same training: one process, DDP, ZeRO 1 to 3."""

import json
import sys
from pathlib import Path

import pytest

from xtuner_plugins.engine.hooks.run_contract import CONTRACT_FILE

from ..forked import train_forked
from ..parallel_case import edited_config, logged, train, write_dataset

pytestmark = pytest.mark.slow

# Sums of float32 in another order: a few units in the last place of a loss near 6, grown over four optimizer steps.
TOLERANCE = 1e-5
# Warm-up, clipping at a norm that every step exceeds, and four groups.
RECIPE = {
    "param_scheduler.warmup_ratio": 0.5,
    "optim_wrapper.clip_grad.max_norm": 0.5,
    "optim_wrapper.paramwise_cfg.decay_norms_and_biases": False,
    "optim_wrapper.paramwise_cfg.part_lr.projector": 5e-4,
    "optim_wrapper.optimizer.weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(toy_base, data, tmp_path_factory):
    """The folder of a run of one process without DeepSpeed, which takes 4 samples at a time."""
    work_dir = tmp_path_factory.mktemp("one") / "run"
    run = train_forked(work_dir, toy_base, data, options=RECIPE)
    assert run.ok, run.output[-3000:]
    losses = logged(work_dir)
    assert len(losses) == 4 and losses[-1] < losses[0] and min(logged(work_dir, "grad_norm")) > 0.5
    return work_dir


@pytest.mark.parametrize(
    "processes, deepspeed, batch_size, micro_batches",
    [
        (1, None, 1, 4),
        (2, None, 2, 1),
        (2, None, 1, 2),
        (1, "deepspeed_zero2", 2, 2),
        (2, "deepspeed_zero1", 1, 2),
        (2, "deepspeed_zero2", 2, 1),
        (2, "deepspeed_zero2", 1, 2),
        (2, "deepspeed_zero3", 1, 2),
    ],
)
def test_same_steps_as_one_process(
    reference, toy_base, data, tmp_path, processes, deepspeed, batch_size, micro_batches
):
    """4 x 1 = 1 x 4 = 2 x 2, on one rank or two: the same steps, to the gradient norm, and the same parts of the loss.

    The optimizers hold the same groups, as the contract reads them from the live objects.
    """
    options = {"train_dataloader.batch_size": batch_size, "optim_wrapper.accumulative_counts": micro_batches}
    case = dict(processes=processes, deepspeed=deepspeed, options={**RECIPE, **options})
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert run.ok, run.output[-3000:]
    for key in ("loss", "grad_norm", "lr", "supervised_tokens"):
        assert logged(tmp_path / "run", key) == pytest.approx(logged(reference, key), rel=1e-5)
    ours, theirs = parts_of_losses(tmp_path / "run"), parts_of_losses(reference)
    assert ours and all(mine == pytest.approx(other, rel=1e-5) for mine, other in zip(ours, theirs, strict=True))
    contract, expected = (json.loads((each / CONTRACT_FILE).read_text()) for each in (tmp_path / "run", reference))
    strategy = f"ZeRO-{deepspeed[-1]}, weights in float32" if deepspeed else f"DDP on {processes} ranks"
    assert contract["strategy"].startswith(strategy if deepspeed or processes > 1 else "one process")
    groups = [sorted(map(str, each["optimizer"]["groups"])) for each in (contract, expected)]
    assert groups[0] == groups[1] and len(groups[0]) == 4 and contract["parts"] == expected["parts"]
    assert contract["run"]["tokens"] == expected["run"]["tokens"]


def parts_of_losses(work_dir):
    """By dataset, tiles and tokens, at each step."""
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if "loss_by_dataset/train" in line]


@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_rank_that_never_sees_an_image(toy_base, tmp_path, deepspeed):
    """Unshuffled, the second of two ranks gets every odd sample: text only, beside a rank with images.

    The encoder trains and recomputes too, in two micro-batches per step.
    """
    data = write_dataset(tmp_path, num_samples=8, text_only=lambda index: index % 2 == 1)
    options = {
        "train_dataloader.sampler.shuffle": False,
        "model.freeze_visual_encoder": False,
        "model.gradient_checkpointing": True,
        "optim_wrapper.accumulative_counts": 2,
    }
    for processes in (1, 2):
        run = train_forked(
            tmp_path / str(processes),
            toy_base,
            data,
            processes=processes,
            deepspeed=deepspeed if processes == 2 else None,
            options={**options, "train_dataloader.batch_size": 2 // processes},
        )
        assert run.ok, run.output[-3000:]
    assert logged(tmp_path / "2") == pytest.approx(logged(tmp_path / "1"), abs=TOLERANCE)


ENCODER_LORA = """
from peft import LoraConfig

model.visual_encoder_lora = dict(type=LoraConfig, r=4)
model.gradient_checkpointing = True
"""


@pytest.mark.parametrize(
    "changes",
    ["model.freeze_projector = False", "model.freeze_projector = True", ENCODER_LORA],
    ids=["projector", "llm alone", "encoder"],
)
def test_lora_under_zero_3(toy_base, data, tmp_path, changes):
    """Frozen and trained weights in one block, which is recomputed; or nothing trained before the first block."""
    config = Path(edited_config(tmp_path, "toy_finetune_lora"))
    config.write_text(config.read_text() + changes)
    case = dict(config=str(config), options={"optim_wrapper.accumulative_counts": 2})
    alone = train_forked(tmp_path / "alone", toy_base, data, **case)
    split = train_forked(tmp_path / "split", toy_base, data, processes=2, deepspeed="deepspeed_zero3", **case)
    assert alone.ok and split.ok, split.output[-3000:]
    assert ("its activations are kept" in split.output) == (changes is ENCODER_LORA)
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "split", key) == pytest.approx(logged(tmp_path / "alone", key), rel=1e-5)


@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
def test_qlora_in_two_processes(reference, toy_base, data, tmp_path, deepspeed):
    """Beside packed weights the first loss is near the unquantized one, and it falls."""
    case = dict(processes=2, deepspeed=deepspeed, config="configs/toy/toy_finetune_qlora.py")
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert run.ok, run.output[-3000:]
    losses = logged(tmp_path / "run")
    assert losses[0] == pytest.approx(logged(reference)[0], rel=0.05) and losses[-1] < losses[0]


def test_packs_train_every_sample_once(reference, toy_base, data, tmp_path):
    """Two ranks, ZeRO-2, packs: what is logged accounts for every supervised token of the data set."""
    options = {
        "train_dataloader.batch_size": 1,
        "train_dataloader.batch_sampler.max_tokens": 400,
    }
    case = dict(processes=2, deepspeed="deepspeed_zero2", config="configs/toy/toy_finetune_packed.py", options=options)
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert run.ok, run.output[-3000:]
    packed, padded = (sum(logged(folder, "supervised_tokens")) for folder in (tmp_path / "run", reference))
    assert packed == padded > 0


def test_xtuner_train_itself(reference, toy_base, data, tmp_path):
    xtuner = str(Path(sys.executable).parent / "xtuner")
    run = train(tmp_path, toy_base, data, processes=2, options=RECIPE, command=(xtuner, "train"))
    assert logged(tmp_path) == pytest.approx(logged(reference), abs=TOLERANCE), run.stdout + run.stderr
