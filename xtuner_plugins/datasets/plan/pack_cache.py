"""The packs of an epoch, made once for all processes of a node and for every later start, and kept in the cache.

    <cache_dir>/plans/<samples>/<budgets and seed>.npz      samples: hash of their indices, tokens and tiles

Of several processes that need the same packs, one makes them and the others wait. The packs of the next epoch are made
ahead in a process of low priority that ends with this one.
"""

import contextlib
import logging
import multiprocessing
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ...processes import die_with_parent
from ..cache import array_hash, locked, save, text_hash
from ..errors import SettingError
from .packing import Packs, pack_samples

FORMAT = "1"  # part of the key; to be raised when the same samples, budgets and seed give other packs
AHEAD = 20_000  # samples; fewer are packed within a second, not ahead
KEPT = 32  # newest plans in the cache
LOWEST_PRIORITY = 19  # of Unix


@dataclass(frozen=True)
class PackCache:
    """Packs of the same samples under the same budgets, for any number of epochs.

    Args:
        cache_dir: the dataset's.
        indices, tokens, tiles: `[n]`, of the samples to pack.
        max_tokens, max_tiles: budgets; None means no limit on tiles.
    """

    cache_dir: str | os.PathLike
    indices: np.ndarray
    tokens: np.ndarray
    tiles: np.ndarray
    max_tokens: int
    max_tiles: int | None

    @cached_property
    def _samples(self) -> str:
        return text_hash(FORMAT, array_hash(self.indices, self.tokens, self.tiles))

    def key(self, seed: int) -> str:
        """Hash of everything that decides the packs of a seed; the same on every machine."""
        return f"{self._samples}/{text_hash(repr((self.max_tokens, self.max_tiles, seed)))}"

    def path(self, seed: int) -> Path:
        """The file of an epoch's packs."""
        return Path(self.cache_dir) / "plans" / f"{self.key(seed)}.npz"

    def packs(self, seed: int) -> Packs:
        """The packs of an epoch, from the cache or made now.

        Args:
            seed: of the epoch.

        Raises:
            SettingError: a sample fits into no pack.
        """
        path, packs = self.path(seed), None
        with contextlib.suppress(OSError):
            return _load(path)
        try:
            with locked(path.with_suffix(".lock")):
                with contextlib.suppress(OSError):
                    return _load(path)
                packs = self._make(seed)
                save(path, vars(packs))
                self._remove_oldest()
        except SettingError as error:
            if error.reason != "cache_dir":
                raise
            print_log(f"{error}\nWithout the cache every process packs for itself.", "current", logging.WARNING)
        return packs or self._make(seed)

    def start_ahead(self, seed: int) -> BaseProcess | None:
        """Start a process that makes the packs of a later epoch; None where that is impossible or not worth it.

        Only one process of a node should call it.
        """
        if len(self.indices) < AHEAD or self.path(seed).exists() or multiprocessing.get_start_method() != "fork":
            return None
        process = multiprocessing.Process(target=self._pack_ahead, args=(seed,), daemon=True, name="pack-ahead")
        process.start()
        return process

    def _pack_ahead(self, seed: int) -> None:
        die_with_parent(watch=True)  # any thread may have started this process
        os.nice(LOWEST_PRIORITY)
        self.packs(seed)

    def _make(self, seed: int) -> Packs:
        return pack_samples(
            self.indices, self.tokens, self.tiles, max_tokens=self.max_tokens, max_tiles=self.max_tiles, seed=seed
        )

    def _remove_oldest(self) -> None:
        plans = (Path(self.cache_dir) / "plans").glob("*/*.npz")
        with contextlib.suppress(OSError):  # another process removes some too
            for path in sorted(plans, key=os.path.getmtime)[:-KEPT]:
                path.unlink()


def _load(path: Path) -> Packs:
    """Packs from a file.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Packs(**arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(f"{path} is damaged") from error
