import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xtuner_plugins.models.losses import next_token_loss


class CountingHead(nn.Linear):
    """A head that remembers how many positions it was asked for."""

    def forward(self, hidden):
        self.positions = hidden.shape[:-1].numel()
        return super().forward(hidden)


def make_case(supervised):
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 8, requires_grad=True)
    labels = torch.full((2, 7), -100)
    for row, column in supervised:
        labels[row, column] = (row * 7 + column) % 11
    return hidden, labels, CountingHead(8, 11, bias=False)


def test_equals_cross_entropy_over_all_logits():
    hidden, labels, head = make_case([(0, 3), (0, 4), (1, 6)])
    loss, count = next_token_loss(hidden, labels, head)
    logits = F.linear(hidden, head.weight)[:, :-1]
    expected = F.cross_entropy(logits.reshape(-1, 11), labels[:, 1:].reshape(-1), ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    assert count == 3


def test_head_runs_only_where_a_label_needs_it():
    hidden, labels, head = make_case([(0, 3), (1, 6)])
    next_token_loss(hidden, labels, head)
    assert head.positions == 2


def test_label_of_the_first_token_predicts_nothing():
    hidden, labels, head = make_case([(0, 0), (1, 5)])
    _, count = next_token_loss(hidden, labels, head)
    assert count == 1


def test_no_label_at_all_runs_the_head_and_gives_zero_gradients():
    hidden, labels, head = make_case([])
    loss, count = next_token_loss(hidden, labels, head)
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert head.weight.grad is not None and head.weight.grad.abs().max() == 0
    assert hidden.grad is not None and hidden.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loss_is_float32(dtype):
    hidden, labels, head = make_case([(0, 3)])
    loss, _ = next_token_loss(hidden.to(dtype), labels, head.to(dtype))
    assert loss.dtype == torch.float32


def test_weights_are_relative_and_change_what_counts():
    hidden, labels, head = make_case([(0, 3), (1, 6)])
    logits = F.linear(hidden, head.weight)
    one = F.cross_entropy(logits[0, 2], labels[0, 3])
    other = F.cross_entropy(logits[1, 5], labels[1, 6])
    weights = torch.tensor([[3.0], [1.0]]).expand(2, 7)
    loss, _ = next_token_loss(hidden, labels, head, weights)
    torch.testing.assert_close(loss, (3 * one + other) / 4)
    equal, _ = next_token_loss(hidden, labels, head, torch.full((2, 7), 5.0))
    torch.testing.assert_close(equal, next_token_loss(hidden, labels, head)[0])
