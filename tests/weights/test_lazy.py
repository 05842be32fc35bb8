"""Lazy tensors read the right bytes, in pieces as well as whole."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner_plugins import weights
from xtuner_plugins.weights.lazy import Cast, Computed, FileTensor, Joined, MemoryTensor


@pytest.fixture
def stored(tmp_path):
    whole = torch.arange(60, dtype=torch.float32).view(12, 5)
    path = tmp_path / "numbers.bin"
    path.write_bytes(b"head" + whole.numpy().tobytes())
    return whole, FileTensor(path, 4, torch.float32, (12, 5))


def blocks(lazy, num_bytes):
    """What ``spans`` of so many bytes hold."""
    with mock.patch.object(weights.lazy, "BLOCK_BYTES", num_bytes):
        spans = list(lazy.spans())
    assert all((stop - start) * 4 <= max(num_bytes, 4) for start, stop in spans)
    return [lazy.read_flat(start, stop) for start, stop in spans]


def test_whole_rows_and_shapes(stored):
    whole, lazy = stored
    assert torch.equal(lazy.read(), whole)
    assert torch.equal(lazy.rows(3, 7).read(), whole[3:7])
    assert torch.equal(lazy.rows(3, 9).rows(1, 4).reshape((5, 3)).read(), whole[4:7].reshape(5, 3))
    assert (lazy.numel, lazy.nbytes) == (60, 240)


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4), block=st.integers(1, 300), span=st.tuples(*[st.integers(0, 60)] * 2)
)
def test_joined_pieces_read_as_the_whole(tmp_path_factory, cuts, block, span):
    whole = torch.arange(60, dtype=torch.float32).view(12, 5)
    path = tmp_path_factory.getbasetemp() / "joined.bin"
    path.write_bytes(whole.numpy().tobytes())
    lazy = FileTensor(path, 0, torch.float32, (12, 5))
    edges = [0, *sorted(cuts), 12]
    joined = Joined([lazy.rows(a, b) for a, b in zip(edges, edges[1:], strict=False)], (12, 5))
    assert torch.equal(torch.cat(blocks(joined, block)).view(12, 5), whole)
    a, b = sorted(span)
    assert torch.equal(joined.read_flat(a, b), whole.view(-1)[a:b])


def test_joined_may_end_in_padding():
    joined = Joined([MemoryTensor(torch.arange(4)), MemoryTensor(torch.arange(4, 8))], (7,))
    assert joined.read().tolist() == list(range(7))


def test_computed_rows(stored):
    whole, lazy = stored
    double = Computed(lambda a, b: lazy.rows(a, b).read() * 2, torch.float32, (12, 5))
    assert torch.equal(double.read(), whole * 2)
    assert torch.equal(double.read_flat(7, 23), whole.view(-1)[7:23] * 2)
    assert torch.equal(torch.cat(blocks(double, 40)), whole.view(-1) * 2)


def test_cut_off_file(stored):
    _, lazy = stored
    lazy.path.write_bytes(lazy.path.read_bytes()[:100])
    with pytest.raises(ValueError, match="ends after 100 bytes"):
        lazy.read()


def test_memory_tensor_is_not_shared():
    tensor = torch.ones(3)
    lazy = MemoryTensor(tensor)
    lazy.read()[0] = 7
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value, dtype", [(torch.nan, torch.float32), (torch.inf, torch.float32), (1e5, torch.float16)])
def test_a_cast_can_refuse_what_is_not_finite(value, dtype):
    source = MemoryTensor(torch.tensor([1.0, value, 2.0]))
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        Cast(source, dtype, finite=True).read()
    assert Cast(source, dtype).read().dtype == dtype
    assert Cast(source, dtype, finite=True).read_flat(2, 3).tolist() == [2.0]
