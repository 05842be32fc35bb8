import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from xtuner_plugins.models import loss_head
from xtuner_plugins.models.loss_head import LossHead
from xtuner_plugins.models.losses import batch_weight, next_token_loss, token_log_probs
from xtuner_plugins.ranges import CHUNK_LOGITS

VOCABULARY = 11


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


@pytest.fixture(params=["fused", "wrapped"])
def kind(request):
    return request.param


@pytest.mark.parametrize("as_on_cuda", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_cross_entropy_over_all_logits(kind, rows, weighted, as_on_cuda, monkeypatch):
    """In the loss, that of each target and every gradient, whatever a chunk holds, and with padded logits."""
    monkeypatch.setattr(loss_head, "SOFTMAX_LOGITS", rows * VOCABULARY)
    if as_on_cuda:
        monkeypatch.setattr(loss_head, "chunk_shape", lambda words, device: (4, 16))
    hidden, targets, head = make_case(kind)
    weights = torch.rand(len(targets)) if weighted else torch.ones(len(targets))
    loss, each = next_token_loss(hidden, targets, head, weights if weighted else None)
    loss.backward()
    again, _, whole = make_case(kind)
    losses = F.cross_entropy(whole(again), targets, reduction="none")
    assert not each.requires_grad and each.dtype == torch.float32
    torch.testing.assert_close(each, losses.detach(), atol=1e-6, rtol=1e-6)
    expected = (losses * weights).sum() / weights.sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(hidden.grad, again.grad, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(head.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


def test_log_probabilities_equal_those_of_all_logits(kind, monkeypatch):
    """In values and in every gradient, whatever weighs them afterwards."""
    monkeypatch.setattr(loss_head, "SOFTMAX_LOGITS", 3 * VOCABULARY)
    hidden, targets, head = make_case(kind)
    again, _, whole = make_case(kind)
    values = token_log_probs(hidden, targets, head)
    expected = whole(again).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-6)
    for each in (values, expected):
        (each * torch.arange(7.0)).sum().backward()
    torch.testing.assert_close(hidden.grad, again.grad, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(head.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("words", [32_020, 92_553, 151_674, 151_936])
def test_chunks_on_cuda_are_aligned(words):
    """Rows of logits begin at multiples of 128 bytes, and products are as large as the planned memory allows."""
    rows, width = loss_head.chunk_shape(words, torch.device("cuda"))
    assert rows % 64 == width % 64 == 0 and 0 <= width - words < 64
    assert rows * width <= CHUNK_LOGITS < (rows + 64) * width


def test_few_logits_exist_at_a_time(kind, monkeypatch):
    monkeypatch.setattr(loss_head, "SOFTMAX_LOGITS", 2 * VOCABULARY)
    sizes = []
    originals = {"log_softmax": F.log_softmax, "cross_entropy": F.cross_entropy}
    for name, original in originals.items():

        def noted(logits, *args, original=original, **kwargs):
            sizes.append(logits.numel())
            return original(logits, *args, **kwargs)

        monkeypatch.setattr(F, name, noted)
    hidden, targets, head = make_case(kind)
    next_token_loss(hidden, targets, head)[0].backward()
    assert max(sizes) == 2 * VOCABULARY and len(sizes) >= 4


def peak_bytes(compute) -> int:
    """Bytes that exist at once while a function runs on fake tensors, which take no memory."""
    with FakeTensorMode(), MemTracker() as tracker:
        compute()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peak_memory_is_below_a_tenth_of_all_logits(dtype):
    """At 8,192 supervised positions and the vocabulary of InternVL2.5 with Qwen2.5."""
    positions, width, vocabulary = 8192, 64, 151_674

    def compute(loss_of=next_token_loss):
        hidden = torch.randn(positions, width, dtype=dtype, requires_grad=True)
        head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        if loss_of is next_token_loss:
            LossHead.take_over(head)
        loss_of(hidden, torch.zeros(positions, dtype=torch.int64), head)[0].backward()

    all_logits = positions * vocabulary * 4
    assert peak_bytes(compute) <= 0.1 * all_logits
    whole = peak_bytes(lambda: compute(lambda hidden, targets, head: [F.cross_entropy(head(hidden).float(), targets)]))
    assert whole >= all_logits  # the measure sees them where they exist


def test_weights_of_zero_give_zero_loss_and_zero_gradients(kind):
    """A rank without labels runs the head too: one position of weight 0."""
    hidden, targets, head = make_case(kind, positions=1)
    loss, _ = next_token_loss(hidden, targets, head, torch.zeros(1))
    loss.backward()
    assert loss.item() == 0.0 and hidden.grad.abs().max() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_is_float32_and_gradients_keep_their_dtype(kind, dtype):
    hidden, targets, head = make_case(kind, dtype=dtype)
    loss, _ = next_token_loss(hidden, targets, head)
    loss.backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == dtype


def test_autocast_decides_the_dtype_of_products():
    """As with a plain head: float32 parameters, products in bfloat16, logits compared in float32."""
    hidden, targets, head = make_case()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = next_token_loss(hidden, targets, head)
        expected = F.cross_entropy(F.linear(hidden, head.weight).float(), targets)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert abs(loss - next_token_loss(hidden, targets, head)[0]) > 1e-6
    loss.backward()
    assert head.weight.grad.dtype == torch.float32


def test_a_head_still_gives_logits_and_one_with_adapters_is_left_alone():
    hidden, _, head = make_case()
    torch.testing.assert_close(head(hidden), F.linear(hidden, head.weight))
    other = bnb.nn.Linear4bit(2, 3)
    LossHead.take_over(other)
    assert type(other) is bnb.nn.Linear4bit


def test_the_weight_of_a_batch_counts_labels_that_are_predicted():
    labels = torch.tensor([[5, -100, 6, 7], [8, 9, -100, -100]])  # the first of each row is predicted by nothing
    assert batch_weight({"labels": labels}) == 3
    assert batch_weight({"labels": labels, "loss_weights": torch.tensor([0.5, 4.0])}) == 0.5 * 2 + 4.0
    pack = {"labels": torch.tensor([[-100, 5, 6, -100, 7]]), "cu_seqlens": torch.tensor([0, 3, 5])}
    assert batch_weight({**pack, "loss_weights": torch.tensor([0.5, 4.0])}) == 0.5 * 2 + 4.0
