"""Measuring lengths on the nodes of a Ray cluster; the index is that of one machine.

Every node needs the project and Ray installed, and data, images, base and cache directory under the same paths. Chunks
go to actors, one per processor, which keep tokenizer and word counts between them. (Ray Data would add blocks and a
shuffle to what is a list of ranges.)
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import locked
from ..errors import SettingError
from ..text.tokens import single_threaded_tokenizer
from .lengths import LengthIndex, chunks_of, merge_parts, part_path, save_part
from .measure import Measure

if TYPE_CHECKING:
    import ray

LOCAL = "local"  # instead of an address: a cluster of this machine, which ends with the measuring


class Measurer:
    """What an actor does: measure ranges of records of any file."""

    def __init__(self, *tasks: Measure):
        self.tasks = tasks

    def rows(self, number: int, first: int, last: int) -> tuple[int, int, int, dict]:
        """The range itself, and its `Measure.rows`."""
        with single_threaded_tokenizer():
            return number, first, last, self.tasks[number].rows(first, last)


def measure_on_ray(
    tasks: Sequence[Measure],
    cache_dir: str,
    address: str = LOCAL,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Measure the files that the cache doesn't hold yet; an interrupted run goes on where it was.

    Args:
        tasks: of each file of the data.
        cache_dir: of the data.
        address: of the cluster, as `ray.init` takes it, or `LOCAL`.
        num_workers: actors; default: one per processor of the cluster.
        progress: called with the number of records measured since the last call.

    Returns:
        Number of records.

    Raises:
        SettingError: Ray isn't installed or the cluster can't be reached.
    """
    directories = [Path(cache_dir) / task.key(cache_dir) for task in tasks]
    missing = []
    for number, (task, directory) in enumerate(zip(tasks, directories, strict=True)):
        for first, last in chunks_of(task) if LengthIndex.open(directory) is None else ():
            if not part_path(directory / "parts", first).exists():
                missing.append((number, first, last))
    total = sum(len(task.index) for task in tasks)
    progress(total - sum(last - first for _, first, last in missing))
    if missing:
        with _cluster(address, num_workers) as ray:
            for number, first, last, rows in _spread(ray, tasks, missing, num_workers):
                save_part(directories[number] / "parts", first, rows)
                progress(last - first)
    for task, directory in zip(tasks, directories, strict=True):
        if LengthIndex.open(directory) is None:
            with locked(directory.with_suffix(".lock")):
                merge_parts(directory, [part_path(directory / "parts", first) for first, _ in chunks_of(task)])
            shutil.rmtree(directory / "parts", ignore_errors=True)
    return total


@contextmanager
def _cluster(address: str, num_workers: int | None) -> Iterator["ray"]:
    """Ray, connected; a local cluster ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise SettingError("ray", "Ray isn't installed", "pip install ray, or measure with --shard K/N") from None
    local = {"num_cpus": num_workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**(local if address == LOCAL else {"address": address}), logging_level="warning", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = f"the Ray cluster {address!r} can't be reached ({' '.join(str(error).split())[:200]})"
        raise SettingError("ray", problem, "start it with ray start --head, or leave the address out") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _spread(
    ray, tasks: Sequence[Measure], chunks: list[tuple[int, int, int]], num_workers: int | None
) -> Iterator[tuple[int, int, int, dict]]:
    """The results of all chunks, in whatever order they come."""
    from ray.util import ActorPool

    num = num_workers or int(ray.cluster_resources().get("CPU", 1))
    actor = ray.remote(num_cpus=1)(Measurer)
    shared = [ray.put(task) for task in tasks]  # each actor fetches them once
    pool = ActorPool([actor.remote(*shared) for _ in range(min(num, len(chunks)))])
    try:
        yield from pool.map_unordered(lambda actor, chunk: actor.rows.remote(*chunk), chunks)
    except ray.exceptions.RayError as error:
        problem = " ".join(str(error).split())[-300:]
        remedy = "every node needs the project, data, base and cache directory under the same paths"
        raise SettingError("ray", f"measuring failed on a node: {problem}", remedy) from None
