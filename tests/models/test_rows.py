import pytest
import torch

from xtuner_plugins.models.rows import check_counts, fill_row, make_row

IMAGE = 7


def padded():
    """Two samples of five and three tokens; the second has no image."""
    ids = torch.tensor([[1, 7, 7, 2, 3], [4, 5, 6, 0, 0]])
    labels = torch.tensor([[-100, -100, -100, 2, 3], [4, 5, -100, 9, 9]])
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]) > 0}


def packed():
    """The same in one row, with two tokens of padding."""
    return {
        "input_ids": torch.tensor([[1, 7, 7, 2, 3, 4, 5, 6, 0, 0]]),
        "labels": torch.tensor([[-100, -100, -100, 2, 3, -100, 5, -100, -100, -100]]),
        "cu_seqlens": torch.tensor([0, 5, 8], dtype=torch.int32),
    }


def test_a_padded_batch_loses_its_padding():
    """The first token of a sample is predicted by nothing: not by the sample before it either. Padding has no label."""
    row = make_row(padded(), IMAGE)
    assert row.input_ids.tolist() == [[1, 7, 7, 2, 3, 4, 5, 6]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert row.segments.bounds == (0, 5, 8) and row.segments.longest == 5
    assert row.segments.cu_seqlens.tolist() == [0, 5, 8] and row.segments.cu_seqlens.dtype == torch.int32
    assert row.image_positions.tolist() == [1, 2]
    assert (row.predicting.tolist(), row.targets.tolist(), row.num_supervised) == ([2, 3, 5], [2, 3, 5], 3)


def test_a_packed_row_means_the_same_and_its_padding_is_a_segment():
    row, expected = make_row(packed(), IMAGE), make_row(padded(), IMAGE)
    assert row.segments.bounds == (0, 5, 8, 10) and row.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1]]
    for name in ("image_positions", "predicting", "targets"):
        assert torch.equal(getattr(row, name), getattr(expected, name)), name


def test_answers_go_on_from_their_prompt():
    """Prompt 1 7 7 2, chosen 3 4, rejected 5 6 5; a second prompt 1 with the answer 2; two tokens of padding."""
    batch = {
        "input_ids": torch.tensor([[1, 7, 7, 2, 3, 4, 5, 6, 5, 1, 2, 0, 0]]),
        "labels": torch.tensor([[-100, -100, -100, -100, 3, 4, 5, 6, 5, -100, 2, -100, -100]]),
        "cu_seqlens": torch.tensor([0, 4, 6, 9, 10, 11], dtype=torch.int32),
        "follows": torch.tensor([-1, 0, 0, -1, 3]),
    }
    row = make_row(batch, IMAGE)
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1, 0, 1]]
    assert row.predicting.tolist() == [3, 4, 3, 6, 7, 9] and row.targets.tolist() == [3, 4, 5, 6, 5, 2]
    assert row.owners.tolist() == [1, 1, 2, 2, 2, 4] and row.segments.branches.follows == (-1, 0, 0, -1, 3, -1)
    filled = fill_row(row, 8)
    assert filled.segments.bounds[-2:] == (13, 16) and filled.segments.branches.follows == (-1, 0, 0, -1, 3, -1, -1)


def test_a_target_weighs_what_its_sample_weighs():
    for batch in (padded(), packed()):
        row = make_row({**batch, "loss_weights": torch.tensor([0.5, 4.0])}, IMAGE)
        assert row.weights.tolist() == [0.5, 0.5, 4.0] and row.owners.tolist() == [0, 0, 1]


def test_without_labels_one_target_of_weight_zero_stands_in():
    for batch in ({"input_ids": torch.tensor([[3]])}, {**padded(), "labels": torch.full((2, 5), -100)}):
        row = make_row(batch, IMAGE)
        assert row.num_supervised == 0 and row.weights.tolist() == [0.0]
        assert row.predicting.tolist() == [0] and row.targets.tolist() == [0]


def test_impossible_boundaries_are_refused():
    for bounds, rows in (([1, 3], 1), ([0, 3, 3], 1), ([0, 9], 1), ([0, 4], 2)):
        with pytest.raises(ValueError, match="boundaries"):
            make_row({"input_ids": torch.zeros(rows, 6, dtype=torch.int64), "cu_seqlens": torch.tensor(bounds)}, IMAGE)


def test_counts_of_tokens_and_tiles_are_compared_per_sample():
    row = make_row(padded(), IMAGE)
    check_counts(row, [1, 0], 2, ["a:1", "a:2"])
    with pytest.raises(ValueError, match=r"^2 image tokens in the text, but 4 image features \(2 .* at fault: a:1$"):
        check_counts(row, [2, 0], 2, ["a:1", "a:2"])
    with pytest.raises(ValueError, match="at fault: a:1, a:2$"):  # the sums agree
        check_counts(row, [0, 1], 2, ["a:1", "a:2"])


def test_a_row_is_filled_up_to_a_multiple():
    for multiple, length in ((1, 9), (3, 9), (8, 16), (64, 64)):
        bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
        row = make_row({"input_ids": torch.arange(1, 10)[None], "cu_seqlens": bounds}, IMAGE)
        filled = fill_row(row, multiple)
        assert filled.input_ids.shape == filled.position_ids.shape == (1, length)
        assert filled.segments.bounds == ((0, 4, 9) if length == 9 else (0, 4, 9, length))
        assert filled.segments.cu_seqlens.tolist() == list(filled.segments.bounds)
        assert filled.segments.cu_seqlens.dtype == torch.int32
        for name in ("image_positions", "predicting", "targets", "weights", "num_supervised"):
            assert getattr(filled, name) is getattr(row, name)
