"""Lazy tensors give the rows that an eager one has, from any tree of windows, joins, casts and shapes."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins import weights
from xtuner_plugins.weights.lazy import FileTensor, Joined, LazyTensor, MemoryTensor, cast

SHAPES = [(12, 5), (60,), (5, 3, 4), (1, 60), (4, 15)]


@st.composite
def trees(draw, depth=3):
    """A step at a time: (what to do, with which numbers)."""
    steps = ("rows", "reshape", "join", "cast", "compute")
    numbers = st.lists(st.integers(0, 100), min_size=3, max_size=3)
    return draw(st.lists(st.tuples(st.sampled_from(steps), numbers), max_size=depth))


def grown(step, numbers, eager, lazy):
    """One more operation on both."""
    a, b, c = numbers
    low, high = sorted(n % (eager.shape[0] + 1) for n in (a, b))
    if step == "rows":
        return eager[low:high], lazy.rows(low, high)
    if step == "reshape" and eager.numel() == 60:
        shape = SHAPES[c % len(SHAPES)]
        return eager.view(shape), lazy.reshape(shape)
    if step == "join":
        return torch.cat([eager[high:], eager[low:]]), Joined(
            [lazy.rows(high, eager.shape[0]), lazy.rows(low, eager.shape[0])]
        )
    if step == "cast":
        return eager.double(), cast(lazy, torch.float64)
    doubled = LazyTensor(lazy.dtype, lazy.shape, lambda start, stop: lazy.read(start, stop) * 2)
    return eager * 2, doubled


@settings(max_examples=100, deadline=None)
@given(tree=trees(), block=st.integers(1, 300), span=st.tuples(st.integers(0, 100), st.integers(0, 100)))
def test_any_tree_reads_as_an_eager_tensor(tmp_path_factory, tree, block, span):
    eager = torch.arange(60, dtype=torch.float32).view(12, 5)
    path = tmp_path_factory.getbasetemp() / "numbers.bin"
    path.write_bytes(b"head" + eager.numpy().tobytes())
    lazy = FileTensor(path, 4, torch.float32, (12, 5))
    path.with_name("short").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="short ends after 100 bytes"):
        FileTensor(path.with_name("short"), 4, torch.float32, (12, 5)).read()
    for step, numbers in tree:
        eager, lazy = grown(step, numbers, eager, lazy)
    assert (lazy.shape, lazy.dtype, lazy.numel, lazy.nbytes) == (eager.shape, eager.dtype, eager.numel(), eager.nbytes)
    assert torch.equal(lazy.read(), eager)
    start, stop = sorted(n % (eager.shape[0] + 1) for n in span)
    assert torch.equal(lazy.read(start, stop), eager[start:stop])
    with mock.patch.object(weights.lazy, "BLOCK_BYTES", block):
        spans = list(lazy.spans())
    row = math.prod(eager.shape[1:]) * eager.element_size()
    assert all(stop - start == 1 or (stop - start) * row <= block for start, stop in spans)
    assert [n for start, stop in spans for n in range(start, stop)] == list(range(eager.shape[0]))


def test_without_dimensions():
    lazy = cast(MemoryTensor(torch.tensor(3.0)), torch.bfloat16)
    assert list(lazy.spans()) == [(0, 1)] and lazy.read(0, 1).shape == () and lazy.read() == 3


def test_what_is_read_belongs_to_the_reader():
    tensor = torch.ones(3)
    MemoryTensor(tensor).read()[0] = 7
    assert tensor.tolist() == [1, 1, 1]


def test_a_cast_can_refuse_what_is_not_finite():
    for value, dtype in ((torch.nan, torch.float32), (torch.inf, torch.float32), (1e5, torch.float16)):
        source = MemoryTensor(torch.tensor([1.0, value, 2.0]))
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            cast(source, dtype, finite=True).read()
        assert cast(source, dtype).read().dtype == dtype and cast(source, None) is source
        assert cast(source, dtype, finite=True).read(2, 3).tolist() == [2.0]
