"""The plan of epochs that samplers, training loop and ledger share, and positions in it."""

from collections.abc import Sequence

from mmengine.dist import all_gather_object, get_world_size
from torch.utils.data import DataLoader, Sampler

from ...errors import SettingError


class PlannedIndex(int):
    """The index of a sample, and the epoch in which it is taken."""

    epoch = 0

    @classmethod
    def of(cls, index: int, epoch: int) -> "PlannedIndex":
        found = cls(index)
        found.epoch = epoch
        return found


class Plan(Sampler):
    """The items of each epoch (samples, or packs of samples) in one order over all ranks; a position is an integer.

    Attributes:
        is_seekable: whether a run can resume within an epoch without fetching again what it has trained on.
        num_ranks: ranks that take items in turn; those that get the same items count as one.
        copies: ranks that get the same items, because they share rows of tokens.
        cell: number of ranks for which the current epoch was ordered.
        digest: hash of everything that decides the items and their order, except for the number of ranks.
    """

    is_seekable = True
    copies = 1
    num_ranks: int
    cell: int
    digest: str

    def seek(self, epoch: int, position: int = 0, cell: int | None = None) -> None:
        """Go to a position: all ranks together have taken `position` items of `epoch`.

        Args:
            cell: the number of ranks for which the epoch was ordered; default: `num_ranks`.
        """
        raise NotImplementedError

    def num_steps(self, epoch: int) -> int:
        """Items of each rank in an epoch."""
        raise NotImplementedError

    def taken(self, epoch: int, position: int) -> Sequence[int]:
        """Indices of the samples of an epoch before a position."""
        raise NotImplementedError

    def left_out(self) -> list[dict]:
        """The samples that no epoch contains, as entries for `ledger.Ledger.account`."""
        raise NotImplementedError

    def describe_data(self) -> str:
        """How many samples will train, as far as known before training, and how they are packed; lines of text."""
        raise NotImplementedError


class ForeignPlan(Plan):
    """Wraps a sampler that is no `Plan`: it can begin an epoch, and a resumed run fetches everything again.

    Args:
        loader: whose batches are the items.
    """

    is_seekable = False
    num_ranks = cell = 1
    digest = ""

    def __init__(self, loader: DataLoader):
        self._loader = loader
        self._begin = getattr(loader.sampler, "set_epoch", lambda epoch: None)

    def seek(self, epoch: int, position: int = 0, cell: int | None = None) -> None:
        self._begin(epoch)

    def num_steps(self, epoch: int) -> int:
        return len(self._loader)

    def taken(self, epoch: int, position: int) -> Sequence[int]:
        return ()

    def left_out(self) -> list[dict]:
        return []

    def describe_data(self) -> str:
        return f"data: {len(self._loader.dataset):,} samples, in the order of {type(self._loader.sampler).__name__}"


def plan_of(loader: DataLoader) -> Plan:
    """The plan of a loader: its batch sampler, the sampler inside that, or a `ForeignPlan`."""
    inside = getattr(loader.batch_sampler, "sampler", None)
    return next((found for found in (loader.batch_sampler, inside) if isinstance(found, Plan)), ForeignPlan(loader))


def require_agreement(plan: Plan) -> None:
    """Compare the plans of all ranks, which would deadlock with different ones.

    Raises:
        SettingError: on every rank, where they differ.
    """
    if get_world_size() > 1 and len(set(all_gather_object(plan.digest))) > 1:
        remedy = "wait until no file is written any more and start again; every node needs the same files"
        error = SettingError("data_paths", "the ranks don't find the same data", remedy)
        error.on_every_rank = True
        raise error
