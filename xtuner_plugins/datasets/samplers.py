"""The plan of an epoch: which samples, in which order, on which rank.

The order of samples depends on seed and epoch alone. So do the packs; their order depends also on the number of ranks
with which the epoch began (`cell`), so that ranks get similar work.

A position in the plan is the number of samples (or packs) that all ranks together have taken in this epoch. Resuming is
`seek`: nothing is read or decoded, and the number of ranks may have changed. Every usable sample comes exactly once per
epoch; a rank for which the last step has none left gets a filler.

The heaviest batch comes first: a GPU that is too small for it runs out of memory in the first step, not hours later.
The heaviest has the most tokens, and of several the most tiles. So lengths are measured before the first step, unless
the order of the mixture is kept.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS

from ..errors import SettingError
from ..files import array_hash, text_hash
from ..ranges import check, check_packs
from ..settings import ConfigError
from .dataset import MultimodalDataset
from .left_out import FILLER_INDEX, describe, left_out
from .plan.packing import Packs, arrange, efficiency, pack_samples
from .plan.plan import Plan, PlannedIndex

FORMAT = "4"  # of plans, in the digest; to be raised when they are others, or in another order


@DATA_SAMPLERS.register_module()
class PlanSampler(Plan):
    """The samples of an epoch in random order, each once, dealt to the ranks in turn; the longest begin the run.

    Args:
        dataset: what is planned.
        seed: decides the order, together with the epoch; None: all ranks agree on a random one.
        shuffle: False keeps the order of the mixture, and measures nothing.
        group_by: 'length' groups samples of similar length; 'modality' also separates samples with and without images.
        group_size: samples per group, at least batch size x ranks; small groups mix the lengths, and with them the
            kinds of questions, within a step. As many of those with most tokens begin the run, whatever the batch size.
        ranks: which rank this is, and of how many; None: those of the process group.
        sequence_parallel: ranks that get the same samples, because they share rows (`model.sequence_parallel`).

    Raises:
        SettingError: an unknown `group_by`, or nothing usable in the dataset.
        ConfigError: as `check_groups`.
    """

    def __init__(
        self,
        dataset: MultimodalDataset,
        seed: int | None = None,
        shuffle: bool = True,
        group_by: str | None = None,
        group_size: int = 64,
        ranks: tuple[int, int] | None = None,
        sequence_parallel: int = 1,
    ):
        self.dataset, self.shuffle, self.group_size = dataset, shuffle, group_size
        self.group_by = check("group_by", group_by)
        self.seed = sync_random_seed() if seed is None else seed
        process, num_processes = get_dist_info() if ranks is None else ranks
        check_groups(num_processes, sequence_parallel)
        self.copies = sequence_parallel
        self.rank, self.num_ranks = process // self.copies, num_processes // self.copies
        self.seek(0)
        self._layout: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._indices = self.usable() if shuffle else np.arange(len(dataset))

    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, tiles and fate of every sample of the dataset (measured now unless the cache has them)."""
        if self._layout is None:
            self._layout = self.dataset.layout()
        return self._layout

    def usable(self) -> np.ndarray:
        """Indices of the samples that can be trained on; raises as the dataset's `usable`, and if there are none."""
        indices = self.dataset.usable(self.layout()[2])
        if not len(indices):
            remedy = "see tools/check_data.py for the reasons"
            raise SettingError("data_paths", "no sample of the dataset can be trained on", remedy)
        return indices

    def left_out(self) -> list[dict]:
        return left_out(self.dataset, self.layout()[2]) if self.shuffle else []  # else batches tell

    def describe_data(self) -> str:
        if not self.shuffle:
            return f"data: {len(self.dataset):,} samples in the order of the mixture; their lengths aren't measured"
        return describe(self.dataset, self.layout()[2])

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch, over all ranks."""
        if not self.shuffle:
            return self._indices
        rng = np.random.default_rng([self.seed, epoch])
        order, heaviest = rng.permutation(self._indices), self._indices[:0]
        tokens, tiles, _ = self.layout()
        if epoch == 0:  # no batch of the run has more tokens than rank 0's first one, whatever the batch size
            places = np.lexsort((tiles[order], tokens[order]))[: -self.group_size - 1 : -1]
            heaviest, order = order[places], np.delete(order, places)
        if self.group_by is None:
            return np.concatenate([heaviest, order])
        kinds, groups, size = (tiles[order] > 0) & (self.group_by == "modality"), [], self.group_size
        for members in (order[~kinds], order[kinds]):
            for first in range(0, len(members), 16 * size):  # sorted by region, so that the order stays random
                part = members[first : first + 16 * size]
                part = part[np.argsort(tokens[part], kind="stable")]
                groups += [part[start : start + size] for start in range(0, len(part), size)]
        whole = [group for group in groups if len(group) == size]
        rest = [group for group in groups if len(group) != size]
        return np.concatenate([heaviest, *(whole[place] for place in rng.permutation(len(whole))), *rest])

    @property
    def digest(self) -> str:
        settings = (self.seed, self.shuffle, self.group_by, self.group_size, FORMAT)
        columns = [column[self._indices] for column in self.layout()[:2]] if self.shuffle else []
        return text_hash(repr(settings), array_hash(self._indices, *columns))

    def num_steps(self, epoch: int) -> int:
        return -(-len(self._indices) // self.num_ranks)

    def seek(self, epoch: int, position: int = 0, cell: int | None = None) -> None:
        self.epoch, self.position, self.cell = epoch, position, cell or self.num_ranks

    def taken(self, epoch: int, position: int) -> Sequence[int]:
        return self.order(epoch)[:position] if position else ()

    def set_epoch(self, epoch: int) -> None:
        """Called by MMEngine at the start of an epoch; a run resumed within the epoch keeps its position."""
        if epoch != self.epoch:
            self.seek(epoch)

    def __len__(self) -> int:
        return self.num_steps(self.epoch)

    def __iter__(self) -> Iterator[int]:
        epoch, rest = self.epoch, self.order(self.epoch)[self.position :]
        self.position = 0
        for step in range(0, len(rest), self.num_ranks):
            place = step + self.rank
            yield PlannedIndex.of(rest[place], epoch) if place < len(rest) else FILLER_INDEX


def check_groups(num_processes: int, sequence_parallel: int) -> None:
    """Raises `ConfigError` where processes don't make whole groups of those that share a row."""
    if num_processes % sequence_parallel:
        said = f"sequence_parallel={sequence_parallel}: the run has {num_processes} process(es), which make no whole "
        said += f"groups of {sequence_parallel}; set NPROC_PER_NODE to a multiple of it, or sequence_parallel to 1"
        raise ConfigError(said)


@DATA_SAMPLERS.register_module()
class PackBatchSampler(Plan):
    """Batches that are packs: their samples go through `collate_packed` into one row.

        sampler=dict(type=PlanSampler), batch_sampler=dict(type=PackBatchSampler, max_tokens=8192), batch_size=1,
        collate_fn=dict(type=collate_packed)

    Args:
        sampler: has dataset, seed, epoch and ranks.
        batch_size: must be 1: a pack is a batch.
        max_tokens, max_tiles: budgets of a pack; None means no limit on tiles.

    Raises:
        SettingError: another batch size or sampler, or a sample that fits into no pack.
    """

    def __init__(self, sampler: PlanSampler, batch_size: int = 1, max_tokens: int = 8192, max_tiles: int | None = None):
        check_packs(batch_size)
        if not isinstance(sampler, PlanSampler):
            problem = f"packing works with PlanSampler, not {type(sampler).__name__}"
            raise SettingError("sampler", problem, "set sampler=dict(type=PlanSampler)")
        self.sampler, self.max_tokens, self.max_tiles = sampler, max_tokens, max_tiles
        self.batch_size = batch_size  # MMEngine asks for it under DeepSpeed
        self._packs: tuple[tuple[int, int], Packs] | None = None
        self.packs(sampler.epoch)  # now: training can't begin before, and starts at once after

    def packs(self, epoch: int) -> Packs:
        """The packs of an epoch, over all ranks, in the order in which they are taken."""
        cell = self.sampler.cell if epoch == self.sampler.epoch else self.sampler.num_ranks
        if self._packs is None or self._packs[0] != (epoch, cell):
            seed = int(np.random.default_rng([self.sampler.seed, epoch]).integers(1 << 62))
            options = dict(max_tokens=self.max_tokens, max_tiles=self.max_tiles, seed=seed)
            packs = pack_samples(*self._samples(), **options, work_rates=self.sampler.dataset.work_rates)
            self._packs = (epoch, cell), arrange(packs, cell, seed)
        return self._packs[1]

    def _samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices, tokens and tiles of the samples to pack."""
        indices, (tokens, tiles, _) = self.sampler.usable(), self.sampler.layout()
        return indices, tokens[indices], tiles[indices]

    def describe(self, packs: Packs) -> str:
        """One line with the figures of the packing."""
        figures, ranks = efficiency(packs, self.max_tokens, self.num_ranks), self.num_ranks
        said = f"packing: {len(packs.order)} samples in {len(packs)} packs of at most {self.max_tokens} tokens "
        said += f"({figures['samples_per_pack']:.2f} samples per pack, {figures['padded']:.2%} of the budget empty, "
        return said + f"{ranks} ranks wait {figures['waiting']:.2%} of the time)"

    copies, num_ranks, cell = (property(attrgetter(f"sampler.{name}")) for name in ("copies", "num_ranks", "cell"))

    @property
    def digest(self) -> str:
        budgets = text_hash(repr((self.max_tokens, self.max_tiles, self.sampler.seed)))
        return f"{text_hash(FORMAT, array_hash(*self._samples()))}/{budgets}"

    def num_steps(self, epoch: int) -> int:
        """Number of steps; differs a little between epochs."""
        return -(-len(self.packs(epoch)) // self.num_ranks)

    def seek(self, epoch: int, position: int = 0, cell: int | None = None) -> None:
        self.sampler.seek(epoch, position, cell)

    def taken(self, epoch: int, position: int) -> Sequence[int]:
        packs = self.packs(epoch)
        return packs.order[: packs.ends[min(position, len(packs)) - 1]] if position else ()

    def left_out(self) -> list[dict]:
        return self.sampler.left_out()

    def describe_data(self) -> str:
        return f"{self.sampler.describe_data()}\n{self.describe(self.packs(self.sampler.epoch))}"

    def __len__(self) -> int:
        return self.num_steps(self.sampler.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        packs = self.packs(self.sampler.epoch)
        first, self.sampler.position = self.sampler.position, 0
        epoch = self.sampler.epoch
        for step in range(first, len(packs), self.sampler.num_ranks):
            place = step + self.sampler.rank
            pack = packs[place] if place < len(packs) else ()
            yield [PlannedIndex.of(index, epoch) for index in pack] or [FILLER_INDEX]
