"""Measuring lengths on several machines: each measures a shard, and the shards become one index.

    DIR/shard-3-of-8.json      what was measured, with which settings, and a hash of each part; written last
    DIR/KEY/FIRST.npz          lengths of the records FIRST, FIRST + 1, ... (`lengths.CHUNK` of them) of a file

A shard has every eighth chunk of all files, so that shards take equally long. Merged, they are the index that measuring
on one machine gives. Data, images and base need the same paths on every machine, as on a shared file system.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import locked, save
from ..errors import SettingError
from .lengths import CHUNK, chunks_of, measure_chunks, merge_parts, part_path
from .measure import Measure

MANIFEST = re.compile(r"shard-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True)
class Shard:
    """One of `of` shards, counted from 1.

    Raises:
        SettingError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            raise SettingError("shard", f"{self} is no shard", "give K/N with K from 1 to N")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that is written `3/8`.

        Raises:
            SettingError: it isn't written so.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise SettingError("shard", f"{text!r} is no shard", "write K/N, for example 3/8")
        return cls(int(found[1]), int(found[2]))

    def chunks(self, tasks: Sequence[Measure]) -> list[list[tuple[int, int]]]:
        """The chunks of each file that this shard measures: every `of`-th of all files together."""
        out, before = [], 0
        for task in tasks:
            chunks = chunks_of(task)
            out.append(chunks[(self.number - 1 - before) % self.of :: self.of])
            before += len(chunks)
        return out

    @property
    def manifest(self) -> str:
        """The name of the file that describes it."""
        return f"shard-{self.number}-of-{self.of}.json"


def measure_shard(
    tasks: Sequence[Measure],
    shard: Shard,
    out: Path,
    cache_dir: str,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Measure a shard; what an earlier attempt has left in `out` isn't measured again.

    Args:
        tasks: of each file of the data.
        out: where parts and manifest are written.
        cache_dir: of the data.
        num_workers, progress: as for `lengths.measure`.

    Returns:
        Number of records in the shard.

    Raises:
        SettingError: `out` can't be written.
    """
    files = []
    all_chunks = shard.chunks(tasks)
    for task, chunks in zip(tasks, all_chunks, strict=True):
        folder = out / task.key(cache_dir)
        measure_chunks(task, folder, chunks, num_workers, progress)
        hashes = {str(first): _hash(part_path(folder, first)) for first, _ in chunks}
        files.append({"facts": task.facts(cache_dir), "parts": hashes})
    save(out / shard.manifest, json.dumps({"chunk": CHUNK, "files": files}, indent=1))
    return sum(last - first for chunks in all_chunks for first, last in chunks)


def merge_shards(tasks: Sequence[Measure], folders: Sequence[Path], cache_dir: str) -> int:
    """Make the index in the cache out of all shards.

    Args:
        tasks: of each file of the data, as this machine finds it.
        folders: that `measure_shard` has written; each may hold several shards.
        cache_dir: of the data.

    Returns:
        Number of records.

    Raises:
        SettingError: a shard is missing or there twice, is of other data or settings, or its parts have changed.
    """
    facts, keys = zip(*[(task.facts(cache_dir), task.key(cache_dir)) for task in tasks], strict=True)
    parts: list[dict[int, Path]] = [{} for _ in tasks]
    for shard, manifest in find_shards(folders).items():
        hashes = _check(shard, manifest, [task.index.path for task in tasks], facts)
        for number, chunks in enumerate(shard.chunks(tasks)):
            firsts = [first for first, _ in chunks]
            parts[number] |= _parts(manifest.parent / keys[number], firsts, hashes[number])
    for task, key, files in zip(tasks, keys, parts, strict=True):
        directory = Path(cache_dir) / key
        with locked(directory.with_suffix(".lock")):
            merge_parts(directory, [files[first] for first, _ in chunks_of(task)])
    return sum(len(task.index) for task in tasks)


def find_shards(folders: Sequence[Path]) -> dict[Shard, Path]:
    """The manifest of every shard.

    Raises:
        SettingError: a shard is missing or there twice.
    """
    found: dict[Shard, Path] = {}
    for path in sorted(path for folder in dict.fromkeys(map(Path.resolve, folders)) for path in folder.glob("*.json")):
        if (name := MANIFEST.fullmatch(path.name)) is None:
            continue
        shard = Shard(int(name[1]), int(name[2]))
        if shard in found:
            raise _refusal(f"shard {shard} is there twice: {found[shard]} and {path}", "remove one of them")
        found[shard] = path
    if not found:
        raise _refusal(
            f"no shard in {', '.join(map(str, folders))}", "measure all of them with --shard K/N --out DIR first"
        )
    numbers = sorted({shard.of for shard in found})
    if len(numbers) > 1:
        raise _refusal(
            f"shards of different divisions: {' and '.join(map(str, numbers))} parts", "merge the shards of one of them"
        )
    missing = [str(number) for number in range(1, numbers[0] + 1) if Shard(number, numbers[0]) not in found]
    if missing:
        count = f"shard{'' if len(missing) == 1 else 's'} {', '.join(missing)} of {numbers[0]}"
        raise _refusal(f"{count} missing", "measure them with --shard K/N --out DIR, or name their directories too")
    return found


def _check(shard: Shard, manifest: Path, paths: list[str], facts: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Compare what a shard has measured with the data of this machine; returns the hashes of its parts by file."""
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
        chunk, files = said["chunk"], [(dict(file["facts"]), dict(file["parts"])) for file in said["files"]]
    except (OSError, ValueError, TypeError, KeyError):
        raise _refusal(f"{manifest} can't be read", "copy the shard's directory again") from None
    if chunk != CHUNK:
        raise _refusal(f"shard {shard} ({manifest}) was measured by another version", "measure it again with this one")
    if len(files) != len(facts):
        raise _refusal(
            f"shard {shard} ({manifest}) is of {len(files)} files, the data has {len(facts)}",
            "merge with the config that it was measured with",
        )
    for path, own, (theirs, _) in zip(paths, facts, files, strict=True):
        if other := [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]:
            raise _refusal(
                f"shard {shard} ({manifest}) was measured with another {', another '.join(other)} than {path} has here",
                "measure it again with the same config, data and paths, or merge with those of the shard",
            )
    return [parts for _, parts in files]


def _parts(folder: Path, firsts: list[int], hashes: dict[str, str]) -> dict[int, Path]:
    """The parts that a shard has of a file."""
    out = {}
    for first in firsts:
        path = part_path(folder, first)
        found = _hash(path)
        if found is None or hashes.get(str(first)) != found:
            state = "is missing" if found is None else "has changed"
            raise _refusal(f"{path} {state} since its shard was measured", "copy the shard's directory again")
        out[first] = path
    return out


def _hash(path: Path) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _refusal(problem: str, remedy: str) -> SettingError:
    return SettingError("shards", problem, remedy)
