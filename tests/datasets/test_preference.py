"""Preference pairs as samples and as batches."""

import numpy as np
import pytest
import torch

from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset, SettingError, collate_pairs, reference
from xtuner_plugins.datasets.left_out import FILLER_INDEX
from xtuner_plugins.hub.constants import IGNORE_INDEX

PAIRS = [
    {"image": "a.png", "prompt": "<image>\nWhat is it?", "chosen": "A cat.", "rejected": "A dog or a horse."},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"image": "a.png", "prompt": "And now?", "chosen": "The same cat.", "rejected": "Nothing."},
]


@pytest.fixture
def make(data_base, write_data, make_image):
    folder = make_image("a.png", 224, 112)

    def make(records=PAIRS, kind=PreferenceDataset, **settings):
        return kind(str(data_base), [write_data(records, f"{kind.__name__}.jsonl")], folder, **settings)

    return make


def test_a_pair_is_its_prompt_and_both_answers_as_conversations_have_them(make, qa):
    dataset, sides = make(), []
    for pair in PAIRS:
        sides += [qa(pair["prompt"], pair[side], image=pair.get("image")) for side in ("chosen", "rejected")]
    tokens, tiles, fates = dataset.layout(num_workers=0)
    assert tiles.tolist() == [3, 0, 3] and not fates.any()
    alone = make(sides, MultimodalDataset)
    for row in range(3):
        pair, (prompt, chosen, rejected) = dataset[row], dataset[row]["branches"]
        ids, labels = pair["input_ids"], pair["labels"]
        assert tokens[row] == len(ids) == prompt + chosen + rejected and (labels[:prompt] == IGNORE_INDEX).all()
        for own, start, length in ((alone[2 * row], prompt, chosen), (alone[2 * row + 1], prompt + chosen, rejected)):
            part = slice(start, start + length)
            assert torch.equal(torch.cat([ids[:prompt], ids[part]]), own["input_ids"])
            assert torch.equal(torch.cat([labels[:prompt], labels[part]]), own["labels"])
            assert own["labels"][prompt] != IGNORE_INDEX == own["labels"][prompt - 1]
            assert torch.equal(pair["tiles"], own["tiles"])
    with pytest.raises(ValueError, match=r"Dataset.jsonl:1: collate_pairs takes samples of PreferenceDataset"):
        collate_pairs([alone[0]])


def test_a_pair_that_does_not_fit_is_named_and_never_cut(make):
    dataset = make([{**PAIRS[1], "rejected": "5 " * 400}, *PAIRS], max_length=120, on_bad_sample="skip")
    _, tiles, fates = dataset.layout(num_workers=0)
    assert dataset.usable(fates).tolist() == [1, 2, 3] and tiles.tolist() == [0, 3, 0, 3]
    assert dataset[0]["dropped"] == "too_long" and "Dataset.jsonl:1" in dataset[0]["message"]
    with pytest.raises(SettingError, match="mean over pairs"):
        make(loss_reduction="square")


def test_pairs_and_fillers_share_a_row(make):
    dataset = make()
    samples = [dataset[0], dataset[1], dataset[FILLER_INDEX]]
    for kept in (samples[:2], samples[1:], samples[2:]):
        batch = collate_pairs(kept)
        branches = [length for sample in kept for length in sample.get("branches", (1, 1, 1))]
        assert batch["cu_seqlens"].diff().tolist() == branches
        assert batch["follows"].tolist() == [-1, 0, 0, -1, 3, 3][: len(branches)]
        assert batch["num_tiles"].tolist() == [sample["num_tiles"] for sample in kept]
        weights = [float("branches" in sample) for sample in kept]
        assert batch.get("loss_weights", torch.ones(2)).tolist() == weights
        own = [sample["input_ids"] for sample in kept if "branches" in sample]
        assert torch.equal(batch["input_ids"][0, : sum(map(len, own))], torch.cat([*own, torch.zeros(0).long()]))


def test_log_probabilities_are_kept_by_record(make, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 2)
    dataset = make([*PAIRS[:2], {**PAIRS[1], "rejected": "5 " * 400}, PAIRS[2]], max_length=120, on_bad_sample="skip")
    kept, other = (reference.ReferenceLogProbs(tmp_path, dataset, [model]) for model in ("one", "another"))
    assert kept.missing() == [0, 1] and kept.records(0) == [(0, 0), (0, 1)]
    assert kept.records(1) == [(0, 3), (0, 3)]  # each chunk has as many
    kept.begin()
    assert np.load(kept.folder / "records.npz")["rows"].tolist() == [0, 1, 3]
    counts = {row: int((dataset[row]["labels"] >= 0).sum()) for row in (0, 1, 3)}
    for chunk in (0, 1):
        kept.save(chunk, [np.arange(counts[row], dtype=np.float32) + row for _, row in kept.records(chunk)])
    assert kept.missing() == [] and other.missing() == [0, 1]
    dataset.reference = kept
    for row, count in counts.items():
        assert dataset[row]["reference"].tolist() == [row + place for place in range(count)]
    found = collate_pairs([dataset[0], dataset[1], dataset[FILLER_INDEX]])["reference"].tolist()
    assert found == [*range(counts[0]), *range(1, counts[1] + 1), 0, 0]
    with pytest.raises(AssertionError, match=f"f:1: {counts[0]} log probabilities, 9 tokens; remove"):
        kept.of(0, 0, 9, "f:1")
