"""Transfer of a batch from a DataLoader worker to the training process, in one reusable block of shared memory.

    worker     takes a free block, copies the batch's tensors into it, marks it as taken
    pipe       carries the block's handle and everything that isn't a tensor
    training   maps the block; when the last tensor in it is gone, marks it as free

A plain DataLoader puts every tensor of every batch into new shared memory, which costs more than the copy: its pages
are allocated and zeroed one by one (0.7 ms per MiB; copying takes 0.15), and the handle of each tensor needs its own
connection. Nothing large goes through the pipe by value, because a full pipe blocks the worker, for ever if the
training process is killed. Without workers a batch isn't transferred and none of this happens.
"""

import gc
import mmap
import os
import signal
import weakref
from multiprocessing.reduction import DupFd

import torch
from torch.utils.data import get_worker_info

from ..processes import die_with_parent, leave_signals_to_parent

HEADER = 4096  # bytes; the first says whether a block is taken
MOST_BLOCKS = 16  # that a worker keeps; it makes more while the training process holds all of them
STEP = 1 << 21  # bytes; blocks are multiples of it, so that batches of similar size share them
ALIGNMENT = 64  # bytes, of each tensor in a block


_bound_pid: int | None = None  # of the worker that `bind_worker` has bound


def bind_worker() -> None:
    """Make a DataLoader worker end with the training process, and only with it; does nothing elsewhere or again.

    A plain worker checks for its parent only while it waits for work, and never while a queue blocks it.
    """
    global _bound_pid
    if get_worker_info() is not None and _bound_pid != os.getpid():
        _bound_pid = os.getpid()
        die_with_parent(watch=True)  # any thread may have started the workers
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN:  # so it was forked, but PyTorch has taken SIGTERM back
            leave_signals_to_parent()  # a step that is to be finished needs its batches


class HandedBatch(dict):
    """A batch whose tensors lie in a block, in a worker. Unpickled it is a plain dict."""

    block: "_Block"

    def __reduce__(self):
        inside, arrays, rest = {}, {}, {}
        for key, value in self.items():
            if not isinstance(value, torch.Tensor):
                rest[key] = value
            elif place := self.block.place_of(value):
                inside[key] = place
            else:  # added after `hand_over`
                arrays[key] = value.numpy()
        return _receive, (DupFd(self.block.handle), self.block.size, list(self), inside, arrays, rest)


def hand_over(batch: dict) -> dict:
    """The batch with its tiles concatenated, in a block if this is a worker.

    Args:
        batch: `tiles` is a list of uint8 `[t, 3, S, S]`; other values are tensors or small objects.

    Returns:
        The batch, with `tiles` as a tensor `[T, 3, S, S]`.
    """
    parts = batch["tiles"]
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    block = None
    if get_worker_info() is not None and hasattr(os, "memfd_create"):
        block = _take_block(sum(-(-part.nbytes // ALIGNMENT) * ALIGNMENT for part in (*parts, *tensors.values())))
    if block is None:
        batch["tiles"] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return batch
    batch = HandedBatch(batch)
    batch.block = block
    batch["tiles"] = block.put((sum(map(len, parts)), *parts[0].shape[1:]), parts)
    batch.update({key: block.put(tensor.shape, [tensor]) for key, tensor in tensors.items()})
    return batch


class _Block:
    """Shared memory of a worker; its first byte says whether it is still read."""

    def __init__(self, size: int):
        self.size = -(-(HEADER + size) // STEP) * STEP
        self.handle = os.memfd_create("batch")
        weakref.finalize(self, os.close, self.handle)
        os.ftruncate(self.handle, self.size)
        self.memory = mmap.mmap(self.handle, self.size)
        self.bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self.used = HEADER

    def put(self, shape: tuple[int, ...], parts: list[torch.Tensor]) -> torch.Tensor:
        """Copy parts into the block, one after another along their first axis."""
        size = sum(part.nbytes for part in parts)
        out = self.bytes[self.used : self.used + size].view(parts[0].dtype).view(shape)
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        return torch.cat(parts, out=out) if len(parts) > 1 else out.copy_(parts[0])

    def place_of(self, tensor: torch.Tensor) -> tuple[int, tuple[int, ...], torch.dtype] | None:
        """(offset in bytes, shape, dtype) of a tensor that `put` returned; None for any other tensor."""
        if tensor.untyped_storage().data_ptr() != self.bytes.untyped_storage().data_ptr():
            return None
        return tensor.storage_offset() * tensor.element_size(), tuple(tensor.shape), tensor.dtype


_blocks: list[_Block] = []  # of a worker process


def _take_block(size: int) -> _Block | None:
    """A free block of at least `size` bytes, marked as taken; None if the system provides none."""
    if not _blocks:
        gc.freeze()  # scanning the objects inherited from the parent would only copy their pages
    free = [block for block in _blocks if not block.memory[0]]
    block = next((block for block in free if HEADER + size <= block.size), None)
    if block is None:
        if free:
            _blocks.remove(free[0])  # too small: replaced by a larger one
        try:
            block = _Block(size)
        except OSError:
            return None
        _blocks.append(block)
        del _blocks[:-MOST_BLOCKS]
    block.memory[0], block.used = 1, HEADER
    return block


def _receive(handle: DupFd, size: int, keys: list, inside: dict, arrays: dict, rest: dict) -> dict:
    """The batch in the training process."""
    file = handle.detach()
    memory = mmap.mmap(file, size)
    os.close(file)
    view = memoryview(memory)
    # Every tensor below holds the view. A process forked from this one holds copies, which must not free the block.
    weakref.finalize(view, _free, memory, os.getpid()).atexit = False
    whole = torch.frombuffer(view, dtype=torch.uint8)

    def tensor(place):
        offset, shape, dtype = place
        return whole[offset : offset + torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)

    found = {key: [*map(tensor, place)] if isinstance(place, list) else tensor(place) for key, place in inside.items()}
    found |= {key: torch.from_numpy(array) for key, array in arrays.items()} | rest
    return {key: found[key] for key in keys}


def _free(memory: mmap.mmap, pid: int) -> None:
    if os.getpid() == pid:
        memory[0] = 0
