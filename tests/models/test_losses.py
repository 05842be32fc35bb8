"""The loss in chunks against cross entropy over all logits; what few logits exist, and what a batch weighs."""

import itertools
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from xtuner_plugins.models import losses as loss_module
from xtuner_plugins.models.losses import LossHead, batch_weight, next_token_loss, token_log_probs
from xtuner_plugins.ranges import CHUNK_LOGITS

VOCABULARY = 11
KINDS = {"fused": "log_softmax", "wrapped": "cross_entropy"}  # heads, and the function that gets their logits


def make_case(kind="fused", positions=7, dtype=torch.float32):
    """Hidden states, targets and a head: one that keeps no logits, or one with an adapter."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, 8, dtype=dtype, requires_grad=True)
    head = nn.Linear(8, VOCABULARY, bias=False, dtype=dtype)
    if kind == "fused":
        LossHead.take_over(head)
    else:
        head = nn.Sequential(head, nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=dtype))
    return hidden, torch.arange(positions) % VOCABULARY, head


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


def test_equals_cross_entropy_over_all_logits(monkeypatch):
    """In the loss, that of each target and every gradient, whatever a chunk holds, and with padded logits."""
    for kind, rows, weighted, on_cuda in itertools.product(KINDS, (1, 2, 3, 100), (False, True), (False, True)):
        with monkeypatch.context() as patch:
            patch.setattr(loss_module, "SOFTMAX_LOGITS", rows * VOCABULARY)
            if on_cuda:
                patch.setattr(loss_module, "chunk_shape", lambda words, device: (4, 16))
            hidden, targets, head = make_case(kind)
            weights = torch.rand(len(targets)) if weighted else torch.ones(len(targets))
            losses = F.cross_entropy(head(hidden), targets, reduction="none")
            expected = (losses * weights).sum() / weights.sum()
            with mock.patch.object(F, KINDS[kind], wraps=getattr(F, KINDS[kind])) as watched:
                loss, each = next_token_loss(hidden, targets, head, weights if weighted else None)
                found = gradients(loss, hidden, head)
            assert max(call.args[0].numel() for call in watched.call_args_list) <= max(rows * VOCABULARY, 16)
            assert not each.requires_grad and each.dtype == torch.float32
            close([loss, each], [expected, losses.detach()])
            close(found, gradients(expected, hidden, head))
            # Log probabilities, whatever weighs them afterwards
            each, weights = token_log_probs(hidden, targets, head), torch.arange(7.0)
            losses = F.cross_entropy(head(hidden), targets, reduction="none")
            close([each], [-losses])
            expected = gradients(-(losses * weights).sum(), hidden, head)
            close(gradients((each * weights).sum(), hidden, head), expected, atol=1e-5)


def test_chunks_on_cuda_are_aligned():
    """Rows of logits begin at multiples of 128 bytes, and products are as large as the planned memory allows."""
    for words in (32_020, 92_553, 151_674, 151_936):
        rows, width = loss_module.chunk_shape(words, torch.device("cuda"))
        assert rows % 64 == width % 64 == 0 and 0 <= width - words < 64
        assert rows * width <= CHUNK_LOGITS < (rows + 64) * width


def test_weights_of_zero_give_zero_loss_and_zero_gradients():
    """A rank without labels runs the head too: one position of weight 0. Gradients keep their dtype."""
    for kind, dtype in itertools.product(KINDS, (torch.bfloat16, torch.float16, torch.float32)):
        hidden, targets, head = make_case(kind, positions=1, dtype=dtype)
        loss, _ = next_token_loss(hidden, targets, head, torch.zeros(1))
        assert loss.item() == 0.0 and loss.dtype == torch.float32
        assert all(each.dtype == dtype and each.abs().max() == 0 for each in gradients(loss, hidden, head))


def test_autocast_decides_the_dtype_of_products():
    """As with a plain head: float32 parameters, products in bfloat16, logits compared in float32."""
    hidden, targets, head = make_case()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = next_token_loss(hidden, targets, head)
        expected = F.cross_entropy(F.linear(hidden, head.weight).float(), targets)
    close([loss], [expected])
    assert abs(loss - next_token_loss(hidden, targets, head)[0]) > 1e-6
    assert gradients(loss, hidden, head)[1].dtype == torch.float32


def test_the_weight_of_a_batch_counts_labels_that_are_predicted():
    labels = torch.tensor([[5, -100, 6, 7], [8, 9, -100, -100]])  # the first of each row is predicted by nothing
    rows = {"input_ids": labels, "labels": labels}
    packed = torch.tensor([[-100, 5, 6, -100, 7, -100]])
    pack = {"input_ids": packed, "labels": packed, "cu_seqlens": torch.tensor([0, 3, 5])}  # and a token of padding
    for batch in (rows, pack):
        assert batch_weight(batch) == 3
        assert batch_weight({**batch, "loss_weights": torch.tensor([0.5, 4.0])}) == 0.5 * 2 + 4.0
    unlabeled = {**rows, "labels": torch.where(labels > 7, -100, labels), "loss_weights": torch.tensor([0.5, 4.0])}
    assert batch_weight(unlabeled) == 0.5 * 2
    pairs = {"follows": torch.tensor([-1, 0, 0]), "num_tiles": torch.tensor([2])}
    assert batch_weight(pairs) == 1 and batch_weight({**pairs, "loss_weights": torch.tensor([3.0])}) == 3
