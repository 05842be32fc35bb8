"""Samples of a mixture: their tiles, tokens and places."""

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from tests.process_table import ends
from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, collate, collate_packed
from xtuner_plugins.datasets.images.media import load_image
from xtuner_plugins.datasets.left_out import FILLER
from xtuner_plugins.models import VisionLanguageModel


def test_a_sample_with_its_tiles(hf_tokenizer, data_base, write_data, make_image, qa):
    """Of two files: three records with images (one tile, several tiles), four without."""
    images = {"a.png": (100, 90), "b.png": (360, 120), "sub/c.jpg": (300, 400)}
    for name, size in images.items():
        folder = make_image(name, *size)
    seen = write_data([qa("<image>?", "No.", image=name) for name in images], "a.json")
    text = write_data([qa(f"{i}?", f"{i}.") for i in range(4)], "text.jsonl")
    mixture = dict(base=str(data_base), data_paths=[seen, text], image_folders=[folder, None])
    dataset = MultimodalDataset(**mixture)
    assert [sample["index"] for sample in list(dataset)] == list(range(7)) and dataset[-1]["index"] == dataset[-7][
        "index"
    ] + 6 == 6
    sample = dataset[1]
    image = load_image(mixture["image_folders"][0] + "/b.png")
    assert torch.equal(sample["tiles"], DynamicTiling(1, 6, 112)(image)) and len(sample["tiles"]) == 4
    assert (sample["input_ids"] == hf_tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")).sum() == 4 * 16
    assert hf_tokenizer.decode(sample["labels"][sample["labels"] != -100]) == "No.<|im_end|>"
    assert sample["source"] == mixture["data_paths"][0] + ":15" and dataset[6]["source"].endswith("text.jsonl:4")
    other = MultimodalDataset(**mixture, max_tiles=2, template="Hermes-2")
    assert len(other[1]["tiles"]) == 3 and other.sources[0].template.name == "Hermes-2"


def test_the_loss_is_the_mean_weighted_by_reduction_and_file(toy_base, write_data, make_image, qa):
    """By hand: the sum of weight x cross entropy over all tokens, by their weights; the last file's weigh double."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").train()
    short = [qa("A?", "Yes.", image="a.png"), qa("B?", "It is not so, and never was, I think.")]
    paths = [write_data(short, name="a.json"), write_data([qa("C?", "No, it isn't.")], name="b.json")]
    settings = dict(image_folders=make_image("a.png", 100, 90), dataset_settings=[None, {"loss_weight": 2.0}])
    for reduction, power in {"token": 0, "sample": -1, "square": -0.5}.items():  # as the official code's len2weight
        samples = list(MultimodalDataset(str(toy_base), paths, **settings, loss_reduction=reduction))
        counts = torch.tensor([int((sample["labels"] != -100).sum()) for sample in samples])
        weights = counts.float() ** power * torch.tensor([1, 1, 2])
        outputs = model(**model.data_preprocessor(collate(samples), True), mode="loss")
        expected = (weights * outputs["sample_losses"]).sum() / (weights * counts).sum()
        assert len(set(counts.tolist())) == 3 and outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_first_warning_of_each_reason_is_logged(data_base, write_data, make_image, qa, monkeypatch):
    """Training doesn't learn a doubtful record in silence, and doesn't say the same of a million of them."""
    records = [qa("Fine?"), *(qa(f"{index}?", "See <image_1>.", image="a.png") for index in range(3))]
    dataset, messages = MultimodalDataset(str(data_base), [write_data(records)], make_image("a.png", 100, 90)), []
    monkeypatch.setattr(MMLogger.get_current_instance(), "handle", lambda entry: messages.append(entry.getMessage()))
    assert len(list(dataset)) == 4 and len(messages) == 1
    assert "data.jsonl:2: " in messages[0] and "<image_1>" in messages[0] and "tools/check_data.py" in messages[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_killed_training(planned_dataset):
    context = multiprocessing.get_context("fork")
    pids = context.Queue()

    def train():
        order, ahead = list(range(37)) * 60, dict(num_workers=2, prefetch_factor=1000)  # more than a queue takes
        batches = iter(DataLoader(planned_dataset, sampler=order, collate_fn=collate, **ahead))
        next(batches)
        pids.put([each.pid for each in psutil.Process().children()])
        time.sleep(60)

    training = context.Process(target=train)
    training.start()
    workers = pids.get(timeout=60)
    time.sleep(2)  # until the queue is full
    training.kill()
    assert len(workers) == 2 and all([ends(pid, 5) for pid in workers])
    training.join()


def test_a_worker_outlives_the_thread_that_started_it(planned_dataset):
    """It ends with the training process; Linux's own signal would come with the thread's end."""
    with ThreadPoolExecutor(1) as thread:
        loader = iter(DataLoader(planned_dataset, num_workers=1, collate_fn=collate))
        thread.submit(next, loader).result()
    time.sleep(1.5)  # it looks every second
    assert len(list(loader)) == len(planned_dataset) - 1


def test_a_packed_batch_through_mmengine(planned_dataset):
    """As a config names everything by strings, in a worker process."""
    packs = dict(type="PackBatchSampler", max_tokens=600)
    loader = dict(sampler=dict(type="PlanSampler"), batch_sampler=packs, batch_size=1, num_workers=1)
    loader |= dict(dataset=planned_dataset, collate_fn=dict(type="collate_packed"))
    batches = list(Runner.build_dataloader(loader, seed=1))
    assert max(batch["input_ids"].shape[1] for batch in batches) <= 600
    assert sum(len(batch["sources"]) for batch in batches) == 37


def test_rows_and_packs_hold_their_samples_unchanged():
    tiles, none = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.empty(0, 3, 2, 2, dtype=torch.uint8)
    dropped = {"dropped": "json", "source": "f:3"}
    samples = [{"tiles": tiles, "num_tiles": 2, "source": "f:1", "dataset": "a", "loss_weight": 2.0}]
    samples += [{"tiles": none, "num_tiles": 0, "source": "f:2"}, {"tiles": none, **dropped}]
    for sample, ids in zip(samples, ([1, 2, 3], [4, 5]), strict=False):
        sample |= {"input_ids": torch.tensor(ids), "labels": torch.tensor([-100, *ids[1:]])}
    rest = {"num_tiles": [2, 0], "sources": ["f:1", "f:2"], "datasets": ["a", ""], "loss_weights": [2.0, 1.0]}
    padded = {"input_ids": [[1, 2, 3, 7], [4, 5, 7, 7]], "labels": [[-100, 2, 3, -100], [-100, 5, -100, -100]]}
    padded["attention_mask"] = [[True] * 3 + [False], [True] * 2 + [False] * 2]
    packed = {"input_ids": [[1, 2, 3, 4, 5, 7, 7]], "labels": [[-100, 2, 3, -100, 5, -100, -100]]}
    packed |= {"attention_mask": [[True] * 5 + [False] * 2], "position_ids": [[0, 1, 2, 0, 1, 0, 1]]}
    packed |= {"cu_seqlens": [0, 3, 5, 7], "max_seqlen": 3}
    found = collate(samples, 7, pad_to_multiple_of=4), collate_packed(samples, 7, pad_to=7)
    for batch, expected in zip(found, (padded, packed), strict=True):
        assert torch.equal(batch.pop("tiles"), tiles)
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}
        assert plain == {**expected, **rest, "dropped": [dropped]}
    bare = collate_packed(samples[1:2])
    assert "loss_weights" not in bare and bare["cu_seqlens"].tolist() == [0, 2]
    assert collate(samples[2:])["sources"] == [FILLER] and collate(samples[:2])["input_ids"][1].tolist() == [4, 5, 0]
