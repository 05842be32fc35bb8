"""Preference pairs as samples and as batches."""

import pytest
import torch
from mmengine.runner import Runner

from xtuner_plugins.datasets import MultimodalDataset, PlanSampler, PreferenceDataset, RecordError, collate_pairs
from xtuner_plugins.datasets.left_out import FILLER, FILLER_INDEX
from xtuner_plugins.hub.constants import IGNORE_INDEX

PAIRS = [
    {"image": "a.png", "question": "<image>\nWhat is it?", "chosen": "A cat.", "rejected": "A dog or a horse."},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"image": "a.png", "prompt": "And now?", "chosen": "The same cat.", "rejected": "Nothing."},
]


@pytest.fixture
def make_dataset(data_base, write_data, make_image):
    folder = make_image("a.png", 224, 112)

    def make(records=PAIRS, kind=PreferenceDataset, **settings):
        return kind(str(data_base), [write_data(records, "pairs.jsonl")], folder, **settings)

    return make


def alone(dataset, row, side, write_data, data_base):
    """A pair's side as a conversation of its own."""
    raw = {key: value for key, value in PAIRS[row].items() if key == "image"}
    question = PAIRS[row].get("question") or PAIRS[row]["prompt"]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": PAIRS[row][side]}]
    path = write_data([{**raw, "messages": turns}], f"{side}{row}.jsonl")
    return MultimodalDataset(str(data_base), [path], dataset.sources[0].folder.folder)[0]


def test_a_pair_is_its_prompt_and_both_answers_as_conversations_have_them(make_dataset, write_data, data_base):
    dataset = make_dataset()
    for row, pair in enumerate(dataset[row] for row in range(len(PAIRS))):
        prompt, chosen, rejected = pair["branches"]
        sides = [alone(dataset, row, side, write_data, data_base) for side in ("chosen", "rejected")]
        ids, labels = pair["input_ids"], pair["labels"]
        for side, start, length in zip(sides, (prompt, prompt + chosen), (chosen, rejected), strict=True):
            part = slice(start, start + length)
            assert torch.equal(torch.cat([ids[:prompt], ids[part]]), side["input_ids"])
            assert torch.equal(torch.cat([labels[:prompt], labels[part]]), side["labels"])
            assert side["labels"][prompt] != IGNORE_INDEX == side["labels"][prompt - 1]
            assert torch.equal(pair["tiles"], side["tiles"])
        assert (labels[:prompt] == IGNORE_INDEX).all() and len(ids) == sum(pair["branches"])


def test_planned_lengths_are_those_of_the_pairs(make_dataset):
    dataset = make_dataset()
    tokens, tiles, fates = dataset.layout(num_workers=0)
    assert tokens.tolist() == [len(dataset[row]["input_ids"]) for row in range(3)]
    assert tiles.tolist() == [3, 0, 3] and not fates.any()
    as_conversations = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    assert make_dataset(as_conversations, MultimodalDataset).layout(num_workers=0)[0].tolist() != tokens.tolist()


def test_a_pair_that_does_not_fit_is_named_and_never_cut(make_dataset):
    dataset = make_dataset([{**PAIRS[1], "rejected": "5 " * 400}, *PAIRS], max_length=120, on_bad_sample="skip")
    _, tiles, fates = dataset.layout(num_workers=0)
    assert dataset.usable(fates).tolist() == [1, 2, 3] and tiles.tolist() == [0, 3, 0, 3]
    assert dataset[0]["dropped"] == "too_long" and "pairs.jsonl:1" in dataset[0]["message"]

    with pytest.raises(RecordError, match="pairs.jsonl:1.*none of rejected"):
        make_dataset([{"prompt": "a", "chosen": "b"}])[0]


def test_pairs_share_a_row(make_dataset):
    dataset = make_dataset()
    samples = [dataset[0], dataset[1]]
    batch = collate_pairs(samples)
    (p, c, r), (q, d, s) = (sample["branches"] for sample in samples)
    assert batch["cu_seqlens"].diff().tolist() == [p, c, r, q, d, s]
    assert batch["follows"].tolist() == [-1, 0, 0, -1, 3, 3] and batch["num_tiles"].tolist() == [3, 0]
    assert torch.equal(batch["input_ids"][0], torch.cat([sample["input_ids"] for sample in samples]))
    assert batch["sources"] == [sample["source"] for sample in samples] and "loss_weights" not in batch


def test_a_filler_is_a_pair_of_no_weight(make_dataset):
    dataset = make_dataset()
    batch = collate_pairs([dataset[FILLER_INDEX]])
    assert batch["sources"] == [FILLER] and batch["loss_weights"].tolist() == [0.0] and len(batch["tiles"]) == 0
    assert batch["cu_seqlens"].tolist() == [0, 1, 2, 3]
    batch = collate_pairs([dataset[1], dataset[FILLER_INDEX]])
    own, filler = batch["cu_seqlens"].diff().split(3)
    assert tuple(own.tolist()) == dataset[1]["branches"] and filler.tolist() == [1, 1, 1]
    assert batch["loss_weights"].tolist() == [1.0, 0.0] and batch["follows"].tolist() == [-1, 0, 0, -1, 3, 3]

    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    sample = make_dataset([{"messages": turns}], MultimodalDataset)[0]
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: collate_pairs takes samples of PreferenceDataset"):
        collate_pairs([sample])


def test_a_loader_of_workers_hands_over_pairs(make_dataset):
    dataset = make_dataset()
    options = dict(sampler=dict(type=PlanSampler), collate_fn=dict(type="collate_pairs"), batch_size=2, num_workers=1)
    loader = Runner.build_dataloader(dict(dataset=dataset, **options), seed=1)
    sources = sorted(source for batch in loader for source in batch["sources"] if source != FILLER)
    assert sources == [f"{dataset.sources[0].index.path}:{line}" for line in (1, 2, 3)]
