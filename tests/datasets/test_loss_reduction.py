"""How samples of different length count in the loss of a step: by tokens, all the same, or in between."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from xtuner_plugins.datasets import MultimodalDataset, collate, collate_packed
from xtuner_plugins.engine.run import steps
from xtuner_plugins.models import VisionLanguageModel

REDUCTIONS = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}  # official: len2weight


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


def test_the_loss_is_the_weighted_mean_however_a_step_is_divided(toy_base, write_data, make_image, qa, monkeypatch):
    """By hand: the sum of weight x cross entropy over all tokens, by their weights; the last file's weigh double."""
    torch.manual_seed(0)
    model = VisionLanguageModel(base=str(toy_base), freeze_llm=False, dtype="float32").train()
    short = [qa("A?", "Yes.", image="a.png"), qa("B?", "It is not so, and never was, I think.")]
    paths = [write_data(short, name="a.json"), write_data([qa("C?", "No, it isn't.")], name="b.json")]
    settings = dict(image_folders=make_image("a.png", 100, 90), dataset_settings=[None, {"loss_weight": 2.0}])
    for reduction, weight_of in REDUCTIONS.items():
        dataset = MultimodalDataset(str(toy_base), paths, **settings, loss_reduction=reduction)
        first, second, third = samples = list(dataset)
        outputs = model(**model.data_preprocessor(collate(samples), True), mode="loss")
        counts = torch.tensor([int((sample["labels"] != -100).sum()) for sample in samples])
        weights = torch.tensor([weight_of(count) for count in counts.tolist()]) * torch.tensor([1, 1, 2])
        expected = (weights * outputs["sample_losses"]).sum() / (weights * counts).sum()
        assert len(set(counts.tolist())) == 3 and outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
        whole = gradient_of(model, [collate(samples)])
        ways = {
            "a pack": gradient_of(model, [collate_packed(samples, pad_to=400)]),
            "micro-batches": gradient_of(model, [collate([first]), collate_packed([second, third])]),
        }
        ranks = [[collate([first])], [collate([second]), collate([third])]]
        both = torch.tensor(sum(steps.batch_weight(batch) for rank in ranks for batch in rank), dtype=torch.float64)
        of_ranks = []
        with monkeypatch.context() as two:
            two.setattr(steps, "get_world_size", lambda: 2)
            for batches in ranks:  # each is told the weight of both; its losses stay its own
                sums = iter([both])
                two.setattr(steps, "sum_over_ranks", lambda value, sums=sums: next(sums, value))
                of_ranks.append(gradient_of(model, batches))
        ways["ranks"] = (of_ranks[0] + of_ranks[1]) / 2  # as DDP and ZeRO average them
        for name, found in ways.items():
            assert (found - whole).norm() < 1e-5 * whole.norm(), (reduction, name)  # float32 sums in another order
