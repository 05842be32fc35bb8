"""Every way to run gives the same training: one process, DDP, ZeRO 1 to 3, ranks that share rows."""

import json

import pytest

from xtuner_plugins.engine.hooks.run_contract import CONTRACT_FILE

from ..forked import fault, write_dataset
from .test_going_on import poison

pytestmark = pytest.mark.slow

# Sums of float32 in another order: a few units in the last place of a loss near 6, grown over four optimizer steps.
TOLERANCE, FIRST_STEP = 1e-5, 1e-6
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


def contract_of(run):
    contract = json.loads((run.work_dir / CONTRACT_FILE).read_text())
    groups = sorted(map(str, contract["optimizer"]["groups"]))
    return contract["strategy"], groups, contract["parts"]


@pytest.mark.parametrize(
    "processes, stage, batch_size, micro_batches",
    [(1, None, 1, 4), (2, None, 2, 1), (2, None, 1, 2), (1, 2, 2, 2), (2, 1, 1, 2), (2, 2, 2, 1), (2, 3, 1, 2)],
)
def test_same_steps_as_one_process(reference, train, processes, stage, batch_size, micro_batches):
    """4 x 1 = 1 x 4 = 2 x 2, on one rank or two: the same steps, to the gradient norm, and the same parts of the loss.

    The optimizers hold the same groups, as the contract reads them from the live objects.
    """
    cut = dict(batch_size=batch_size, accumulative_counts=micro_batches, processes=processes)
    run = train("run", deepspeed=stage and f"deepspeed_zero{stage}", options=GROUPS, **cut, **RECIPE)
    for key in ("loss", "grad_norm", "lr", "supervised_tokens", "loss_by_dataset/train"):
        assert run.logged(key) == pytest.approx(reference.logged(key), rel=1e-5)
    (strategy, *found), (_, *expected) = contract_of(run), contract_of(reference)
    plain = "one process" if processes == 1 else f"DDP on {processes} ranks"
    assert strategy.startswith(f"ZeRO-{stage}, weights in float32" if stage else plain)
    assert found == expected and len(found[0]) == 4


ENCODER = {"model.visual_encoder_lora": {"type": "LoraConfig", "r": 4}, "model.gradient_checkpointing": True}
LORA = dict(leaf="toy_finetune_lora", accumulative_counts=2)
UNSHUFFLED = {"train_dataloader.sampler.shuffle": False}
SPLIT = {
    # The second of two ranks gets every odd sample: text only, beside a rank with images for an encoder that trains.
    "odd": dict(freeze_visual_encoder=False, gradient_checkpointing=True, accumulative_counts=2, options=UNSHUFFLED),
    # Frozen and trained weights in one block, which is recomputed; or nothing trained before the first block.
    "lora": LORA,
    "lora, frozen projector": dict(freeze_projector=True, **LORA),
    "lora, encoder": dict(options=ENCODER, **LORA),
    # The head is gathered for the forward pass, and again for the backward pass, which makes its gradient.
    "pairs": dict(leaf="toy_finetune_mpo_full", objectives={"orpo": 1.0}),
}


@pytest.mark.parametrize(
    "name, layout", [*(("odd", layout) for layout in ("ddp", "zero1", "zero2")), *((name, "zero3") for name in SPLIT)]
)
def test_parts_and_data_that_ranks_have_unequally(train, tmp_path, name, layout):
    path, images = write_dataset(tmp_path / "data", text_only=lambda index: index % 2 == 1)
    case = dict(data=(path.with_name("pairs.jsonl") if name == "pairs" else path, images), **SPLIT[name])
    alone, split = train("alone", **case), train("split", layout=layout, **case)
    assert ("its activations are kept" in split.output) == (name == "lora, encoder")
    assert split.logged() == pytest.approx(alone.logged(), abs=TOLERANCE)
    assert split.logged("grad_norm") == pytest.approx(alone.logged("grad_norm"), rel=1e-5)


def test_qlora_in_two_processes(reference, train):
    """Beside packed weights the first loss is near the unquantized one, and it falls."""
    for layout in ("ddp", "zero2"):
        losses = train(f"qlora {layout}", "toy_finetune_qlora", layout=layout).logged()
        assert losses[0] == pytest.approx(reference.logged()[0], rel=0.05) and losses[-1] < losses[0]


SHARED = {
    "full": {},
    "packed": {"leaf": "toy_finetune_packed", "pack_tokens": 200},
    "lora": {"leaf": "toy_finetune_lora", "gradient_checkpointing": True, "offload_activations": True},
}


def share(name, processes, ranks, stage=None):
    """So many of the processes share each row; 4 samples or 1 pack per micro-batch in all."""
    case = {"sequence_parallel": ranks, "batch_size": 1 if name == "packed" else 4 * ranks // processes}
    return {**SHARED[name], **case, "processes": processes, "deepspeed": stage and f"deepspeed_zero{stage}"}


@pytest.mark.parametrize(
    "name, processes, ranks, stage",
    [("full", 2, 2, None), ("full", 4, 2, 2), ("packed", 2, 2, 3), ("packed", 4, 4, None), ("lora", 2, 2, 3)],
)
def test_ranks_that_share_rows(once, train, name, processes, ranks, stage):
    """The same losses, norms, counts of tokens and tiles; the ledger and the speed count each sample once."""
    alone, run = once(name, **share(name, 1, 1)), train("run", **share(name, processes, ranks, stage))
    for key in ("loss", "grad_norm", "lr", "supervised_tokens", "tiles", "padding"):
        found, expected = run.logged(key), alone.logged(key)
        assert found[0] == pytest.approx(expected[0], rel=FIRST_STEP), key
        assert found == pytest.approx(expected, rel=TOLERANCE), key
    ledgers = [(each.work_dir / "ledger.jsonl").read_text() for each in (run, alone)]
    assert ledgers[0] == ledgers[1] and json.loads(ledgers[0].splitlines()[-1])["trained"] == 16
    assert f"{ranks} ranks share each row" in run.output and f"each of {processes // ranks} ranks" in run.output


def test_a_fault_on_a_rank_that_shares_rows_stops_all(train):
    """A loss that isn't finite names its samples once."""
    run = train("nan", codes=(1,), prepare=fault("engine.run.steps.naming", 1, poison, 1), **share("lora", 2, 2))
    (line,) = run.errors
    assert "step 1: the loss is nan" in line and line.count("train.jsonl:") == 4
