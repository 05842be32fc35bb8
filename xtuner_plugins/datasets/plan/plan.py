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
        num_ranks: ranks that take items in turn; those that get the same items count as one.
        copies: ranks that get the same items, because they share rows of tokens.
        cell: number of ranks for which the current epoch was ordered.
        digest: hash of everything that decides the items and their order, except for the number of ranks.
    """

    copies = 1
    num_ranks: int
    cell: int
    digest: str

    def seek(self, epoch: int, position: int = 0, cell: int | None = None) -> None:
        """Go to a position: all ranks together have taken `position` items of `epoch`.

        Args:
            cell: the number of ranks for which the epoch was ordered; default: `num_ranks`.
        """

    def num_steps(self, epoch: int) -> int:
        """Items of each rank in an epoch."""

    def taken(self, epoch: int, position: int) -> Sequence[int]:
        """Indices of the samples of an epoch before a position."""

    def left_out(self) -> list[dict]:
        """The samples that no epoch contains, as entries for `ledger.Ledger.account`."""

    def describe_data(self) -> str:
        """How many samples will train, as far as known before training, and how they are packed; lines of text."""


def plan_of(loader: DataLoader) -> Plan:
    """The plan of a loader: its batch sampler, or the sampler inside that; raises `SettingError` without one."""
    inside = getattr(loader.batch_sampler, "sampler", None)
    found = next((each for each in (loader.batch_sampler, inside) if isinstance(each, Plan)), None)
    if found is None:
        remedy = "set sampler=dict(type=PlanSampler), or train with MMEngine's IterBasedTrainLoop"
        raise SettingError("sampler", f"PlannedTrainLoop can't plan a {type(inside).__name__}", remedy)
    return found


def require_agreement(plan: Plan) -> None:
    """Raises `SettingError` on every rank where their plans differ, with which they would deadlock."""
    if get_world_size() > 1 and len(set(all_gather_object(plan.digest))) > 1:
        remedy = "wait until no file is written any more and start again; every node needs the same files"
        error = SettingError("data_paths", "the ranks don't find the same data", remedy)
        error.on_every_rank = True
        raise error
