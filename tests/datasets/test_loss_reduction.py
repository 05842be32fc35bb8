"""How samples of different length count in the loss of a step: by tokens, all the same, or in between."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from tests.engine.forked import train_forked
from tests.engine.parallel_case import logged, write_dataset
from xtuner_plugins.datasets import MultimodalDataset, collate, collate_packed
from xtuner_plugins.engine.run import steps
from xtuner_plugins.models import VisionLanguageModel

REDUCTIONS = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}  # official: len2weight


@pytest.fixture(scope="module")
def model(toy_base):
    torch.manual_seed(0)
    return VisionLanguageModel(base=str(toy_base), freeze_llm=False, dtype="float32").train()


def gradient_of(model, micro_batches):
    """What a step of plain descent with rate 1 takes off the parameters; the model stays as it was."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    steps.run_step(model, OptimWrapper(torch.optim.SGD(trained, lr=1.0)), micro_batches)
    found = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, trained, strict=True)])
    with torch.no_grad():
        for old, new in zip(before, trained, strict=True):
            new.copy_(old)
    return found


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_is_the_weighted_mean_however_a_step_is_divided(
    reduction, toy_base, model, write_data, make_image, qa, monkeypatch
):
    """By hand: the sum of weight x cross entropy over all tokens, by their weights; the last file's weigh double."""
    short = [qa("A?", "Yes.", image="a.png"), qa("B?", "It is not so, and never was, I think.")]
    paths = [write_data(short, name="a.json"), write_data([qa("C?", "No, it isn't.")], name="b.json")]
    settings = dict(dataset_settings=[None, {"loss_weight": 2.0}], loss_reduction=reduction)
    dataset = MultimodalDataset(str(toy_base), paths, make_image("a.png", 100, 90), **settings)
    samples = [dataset[index] for index in range(3)]
    outputs = model(**model.data_preprocessor(collate(samples), True), mode="loss")
    counts = [int((sample["labels"] != -100).sum()) for sample in samples]
    assert len(set(counts)) == 3
    weights = [REDUCTIONS[reduction](count) * of_file for count, of_file in zip(counts, (1, 1, 2), strict=True)]
    total = sum(w * loss for w, loss in zip(weights, outputs["sample_losses"].tolist(), strict=True))
    expected = total / sum(w * count for w, count in zip(weights, counts, strict=True))
    assert outputs["loss"].item() == pytest.approx(expected, rel=1e-6)

    whole = gradient_of(model, [collate(samples)])
    ways = {
        "a pack": gradient_of(model, [collate_packed(samples, pad_to=400)]),
        "micro-batches": gradient_of(model, [collate([samples[0]]), collate_packed(samples[1:])]),
    }
    ranks = [[collate(samples[:1])], [collate(samples[1:2]), collate(samples[2:])]]
    weights = [sum(steps.batch_weight(batch) for batch in batches) for batches in ranks]
    monkeypatch.setattr(steps, "get_world_size", lambda: 2)
    of_ranks = []
    for batches in ranks:  # each is told the weight of both; its losses stay its own
        sums = iter([torch.tensor(sum(weights), dtype=torch.float64)])
        monkeypatch.setattr(steps, "sum_over_ranks", lambda value, sums=sums: next(sums, value))
        of_ranks.append(gradient_of(model, batches))
    ways["ranks"] = (of_ranks[0] + of_ranks[1]) / 2  # as DDP and ZeRO average them
    for name, found in ways.items():
        assert (found - whole).norm() < 1e-5 * whole.norm(), name  # float32 sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero2"])
def test_two_processes_log_what_one_does(toy_base, tmp_path, deepspeed):
    data = write_dataset(tmp_path / "data", num_samples=8)
    mixed = {"train_dataloader.sampler.group_size": 1}  # steps of answers of unequal length
    square = mixed | {"train_dataloader.dataset.loss_reduction": "square"}
    for name, options, more in [
        ("alone", square, {}),
        ("split", square, {"processes": 2, "deepspeed": deepspeed}),
        ("tokens", mixed, {}),
    ]:
        case = dict(config="configs/toy/toy_finetune_lora.py", options=options, **more)
        run = train_forked(tmp_path / name, toy_base, data, **case)
        assert run.ok, run.output[-3000:]
    for key in ("loss", "grad_norm"):
        alone, split, tokens = (logged(tmp_path / name, key) for name in ("alone", "split", "tokens"))
        assert split == pytest.approx(alone, rel=1e-5) and tokens != pytest.approx(alone, rel=1e-3)
