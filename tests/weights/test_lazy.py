"""Lazy tensors give the rows that an eager one has, from any tree of windows, joins, casts and shapes."""

import math
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins import weights
from xtuner_plugins.weights.lazy import FileTensor, Joined, LazyTensor, MemoryTensor, cast

SHAPES = [(12, 5), (60,), (5, 3, 4), (1, 60), (4, 15)]
STEPS = st.tuples(st.sampled_from(("rows", "reshape", "join", "cast", "compute")), *[st.integers(0, 100)] * 3)


def grown(step, a, b, c, eager, lazy):
    """One more operation on both."""
    low, high = sorted(n % (eager.shape[0] + 1) for n in (a, b))
    if step == "rows":
        return eager[low:high], lazy.rows(low, high)
    if step == "reshape" and eager.numel() == 60:
        shape = SHAPES[c % len(SHAPES)]
        return eager.view(shape), lazy.reshape(shape)
    if step == "join":
        parts = [lazy.rows(start, eager.shape[0]) for start in (high, low)]
        return torch.cat([eager[high:], eager[low:]]), Joined(parts)
    if step == "cast":
        return eager.double(), cast(lazy, torch.float64)
    return eager * 2, LazyTensor(lazy.dtype, lazy.shape, lambda start, stop: lazy.read(start, stop) * 2)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, max_size=3), block=st.integers(1, 300), span=st.tuples(*[st.integers(0, 100)] * 2))
def test_any_tree_reads_as_an_eager_tensor(tmp_path_factory, steps, block, span):
    eager, path = torch.arange(60, dtype=torch.float32).view(12, 5), tmp_path_factory.getbasetemp() / "numbers.bin"
    path.write_bytes(b"head" + eager.numpy().tobytes())
    lazy = FileTensor(path, 4, torch.float32, (12, 5))
    for step in steps:
        eager, lazy = grown(*step, eager, lazy)
    assert (lazy.shape, lazy.dtype, lazy.numel, lazy.nbytes) == (eager.shape, eager.dtype, eager.numel(), eager.nbytes)
    start, stop = sorted(n % (eager.shape[0] + 1) for n in span)
    assert torch.equal(lazy.read(), eager) and torch.equal(lazy.read(start, stop), eager[start:stop])
    with mock.patch.object(weights.lazy, "BLOCK_BYTES", block):
        spans = list(lazy.spans())
    row = math.prod(eager.shape[1:]) * eager.element_size()
    assert all(stop - start == 1 or (stop - start) * row <= block for start, stop in spans)
    assert [n for span in spans for n in range(*span)] == list(range(eager.shape[0]))


def test_single_numbers_and_what_is_refused(tmp_path, refused):
    lazy = cast(MemoryTensor(torch.tensor(3.0)), torch.bfloat16)
    assert list(lazy.spans()) == [(0, 1)] and lazy.read(0, 1).shape == () and lazy.read() == 3
    assert MemoryTensor(torch.arange(60).view(12, 5)).reshape((60,)).read(7, 9).tolist() == [7, 8]
    (tmp_path / "short").write_bytes(bytes(100))
    short = FileTensor(tmp_path / "short", 4, torch.float32, (12, 5))
    refused("short ends after 100 bytes", short.read, error=ValueError)
    for value, dtype in ((torch.nan, torch.float32), (torch.inf, torch.float32), (1e5, torch.float16)):
        source = MemoryTensor(torch.tensor([1.0, value, 2.0]))
        refused("NaN or infinity .* an earlier checkpoint", cast(source, dtype, finite="x").read, error=ValueError)
        assert cast(source, dtype).read().dtype == dtype and cast(source, None) is source
        cast(source, dtype, finite="x").read(2, 3)[0] = 7  # what is read belongs to the reader
        assert cast(source, dtype, finite="x").read(2, 3).tolist() == [2.0]
