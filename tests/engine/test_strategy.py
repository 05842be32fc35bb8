"""Every way to run gives the same training: one process, DDP, ZeRO 1 to 3."""

import sys
from pathlib import Path

import pytest

from .forked import train_forked
from .parallel_case import logged, train, write_dataset

pytestmark = pytest.mark.slow

# Sums of float32 in another order: a few units in the last place of a loss near 6, grown over four optimizer steps.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(toy_base, data, tmp_path_factory):
    """Losses of one process without DeepSpeed."""
    work_dir = tmp_path_factory.mktemp("one")
    run = train(work_dir, toy_base, data)
    assert run.returncode == 0, run.stdout + run.stderr
    losses = logged(work_dir)
    assert len(losses) == 4 and losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(
    "processes, deepspeed",
    [
        (2, None),
        (1, "deepspeed_zero2"),
        (2, "deepspeed_zero1"),
        (2, "deepspeed_zero2"),
        (2, "deepspeed_zero3"),
    ],
)
def test_same_losses_as_one_process(reference, toy_base, data, tmp_path, processes, deepspeed):
    run = train(tmp_path, toy_base, data, processes=processes, deepspeed=deepspeed)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert logged(tmp_path) == pytest.approx(reference, abs=TOLERANCE)


@pytest.mark.parametrize(
    "processes, deepspeed, batch_size, micro_batches",
    [
        (1, None, 1, 4),
        (1, None, 2, 2),
        (2, None, 1, 2),
        (1, "deepspeed_zero2", 1, 4),
        (2, "deepspeed_zero1", 1, 2),
        (2, "deepspeed_zero2", 1, 2),
        (2, "deepspeed_zero3", 1, 2),
    ],
)
def test_same_steps_from_micro_batches(
    reference, toy_base, data, tmp_path, processes, deepspeed, batch_size, micro_batches
):
    """4 x 1 = 1 x 4 = 2 x 2, on one rank or two, with clipping and warm-up: the same steps, to the gradient norm."""
    recipe = {"param_scheduler.warmup_ratio": 0.5, "optim_wrapper.clip_grad.max_norm": 0.5}
    one = train_forked(tmp_path / "one", toy_base, data, options=recipe)
    options = {"train_dataloader.batch_size": batch_size, "optim_wrapper.accumulative_counts": micro_batches}
    case = dict(processes=processes, deepspeed=deepspeed, options={**recipe, **options})
    run = train_forked(tmp_path / "run", toy_base, data, **case)
    assert one.ok and run.ok, run.output[-3000:]
    assert logged(tmp_path / "run")[0] == pytest.approx(reference[0], rel=1e-6)
    assert min(logged(tmp_path / "one", "grad_norm")) > 0.5  # so that every step is clipped
    for key in ("loss", "grad_norm", "lr", "supervised_tokens"):
        assert logged(tmp_path / "run", key) == pytest.approx(logged(tmp_path / "one", key), rel=1e-5)


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


@pytest.mark.parametrize("freeze_projector", [False, True])
def test_lora_under_zero_3(toy_base, data, tmp_path, freeze_projector):
    """Frozen and trained weights in one block, which is recomputed; with nothing trained before the first block."""
    config = "configs/toy/toy_finetune_lora.py"
    options = {"model.freeze_projector": freeze_projector, "optim_wrapper.accumulative_counts": 2}
    alone = train_forked(tmp_path / "alone", toy_base, data, config=config, options=options)
    split = train_forked(
        tmp_path / "split", toy_base, data, processes=2, deepspeed="deepspeed_zero3", config=config, options=options
    )
    assert alone.ok and split.ok, split.output[-3000:]
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "split", key) == pytest.approx(logged(tmp_path / "alone", key), rel=1e-5)


def test_lora_of_the_encoder_under_zero_3(toy_base, data, tmp_path):
    options = {
        "model.visual_encoder_lora.type": "LoraConfig",
        "model.visual_encoder_lora.r": 4,
        "model.gradient_checkpointing": True,
    }
    case = dict(config="configs/toy/toy_finetune_lora.py", options=options)
    alone = train_forked(tmp_path / "alone", toy_base, data, **case)
    split = train_forked(tmp_path / "split", toy_base, data, processes=2, deepspeed="deepspeed_zero3", **case)
    assert alone.ok and split.ok, split.output[-3000:]
    assert "its activations are kept" in split.output
    assert logged(tmp_path / "split") == pytest.approx(logged(tmp_path / "alone"), abs=TOLERANCE)


@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
def test_qlora_in_two_processes(reference, toy_base, data, tmp_path, deepspeed):
    """Beside packed weights the first loss is near the unquantized one, and it falls."""
    case = dict(processes=2, deepspeed=deepspeed, config="configs/toy/toy_finetune_qlora.py")
    run = train(tmp_path, toy_base, data, **case)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    losses = logged(tmp_path)
    assert losses[0] == pytest.approx(reference[0], rel=0.05) and losses[-1] < losses[0]


def test_packs_train_every_sample_once(toy_base, data, tmp_path):
    """Two ranks, ZeRO-2, packs: what is logged accounts for every supervised token of the data set."""
    options = {
        "train_dataloader.batch_size": 1,
        "train_dataloader.batch_sampler.max_tokens": 400,
        "train_dataloader.dataset.cache_dir": tmp_path / "cache",
    }
    supervised = {}
    for name, config in (
        ("packed", "configs/toy/toy_finetune_packed.py"),
        ("padded", "configs/toy/toy_finetune_full.py"),
    ):
        settings = options if name == "packed" else {}
        run = train(
            tmp_path / name, toy_base, data, processes=2, deepspeed="deepspeed_zero2", config=config, options=settings
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
        supervised[name] = sum(logged(tmp_path / name, "supervised_tokens"))
    assert supervised["packed"] == supervised["padded"] > 0


def test_xtuner_train_itself(reference, toy_base, data, tmp_path):
    xtuner = str(Path(sys.executable).parent / "xtuner")
    run = train(tmp_path, toy_base, data, processes=2, command=(xtuner, "train"))
    assert logged(tmp_path) == pytest.approx(reference, abs=TOLERANCE), run.stdout + run.stderr


def test_resumed_equals_uninterrupted(reference, toy_base, data, tmp_path):
    first = {"default_hooks.checkpoint.interval": 2}
    run = train(tmp_path / "whole", toy_base, data, options=first)
    assert run.returncode == 0, run.stderr
    checkpoint = str(tmp_path / "whole" / "iter_2.pth")
    run = train(tmp_path / "rest", toy_base, data, options=first, extra=("--resume", checkpoint))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert logged(tmp_path / "rest") == pytest.approx(reference[2:], abs=TOLERANCE)


def test_a_checkpoint_of_another_choice_is_refused(toy_base, data, tmp_path):
    options = {"default_hooks.checkpoint.interval": 2}
    run = train(tmp_path / "lora", toy_base, data, config="configs/toy/toy_finetune_lora.py", options=options)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    checkpoint = str(tmp_path / "lora" / "iter_2.pth")
    run = train(tmp_path / "full", toy_base, data, extra=("--resume", checkpoint))
    assert run.returncode != 0
    assert "another model or another choice of trained parts" in run.stderr
