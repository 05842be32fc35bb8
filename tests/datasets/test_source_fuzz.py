"""Damaged files of every kind of source give samples or our errors, never anything else.

FUZZ_CASES=200000 python -m pytest tests/datasets/test_source_fuzz.py -m "slow or not slow" runs as many per kind.
Each case changes some bytes of a small file, or cuts it off; then every record and image that can be named is read.
Cases run in a child process, so that a crash or endless loop of a library is found, and says which case it was.
"""

import multiprocessing
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.datasets.source_kinds import KINDS, make_images, make_records, write_webdataset
from xtuner_plugins.datasets.images.media import image_size, load_image
from xtuner_plugins.datasets.images.stored import open_images
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import DataError
from xtuner_plugins.files import get_cache_dir, split_zip

CASES = int(os.environ.get("FUZZ_CASES", 200))
SECONDS = 60 + CASES  # of a kind; most cases take milliseconds
WRITERS = {**KINDS, "webdataset": lambda *args: write_webdataset(*args, shards=1)}


def read_all(data_paths: str, image_folders: str | None = None) -> int:
    """Reads everything that can be read; returns the number of records."""
    records, images = open_records(data_paths), open_images(image_folders, Path(data_paths).parent)
    num_read = 0
    for row in range(min(len(records), 30)):
        try:
            for medium in parse_record(records.parse(row), records.source(row)).media:
                found = images.resolve(medium.name)
                image_size(found)
                load_image(found)
            num_read += 1
        except DataError as error:
            assert str(error) and "\n" not in str(error)
    return num_read


def damage(data: bytes, rng: random.Random) -> bytes:
    if rng.randrange(5) == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at, length = rng.randrange(len(changed)), rng.choice((1, 2, 4, 8, 60))
        changed[at : at + length] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return bytes(changed)


def _fuzz(kind: str, folder: Path, cases: int, progress) -> None:
    written = WRITERS[kind](make_records()[:4], make_images(folder / "images", scale=7), folder)
    target = Path(split_zip(written.get("image_folders") or "")[0] or written["data_paths"])
    target = next(target.glob("*.arrow")) if target.is_dir() else target
    whole, read = target.read_bytes(), [read_all(**written)]
    for case in range(cases):
        progress.value = case
        target.write_bytes(damage(whole, random.Random(f"{kind} {case}")))
        os.utime(target, ns=(case, case))
        try:
            read.append(read_all(**written))
        except DataError as error:
            assert str(error)
            read.append(-1)
        shutil.rmtree(get_cache_dir(), ignore_errors=True)
    assert read[0] == 4 > min(read), "the whole file is read, and a case has damaged something"


@pytest.mark.parametrize("kind", ["json.gz", "parquet", "save_to_disk", "webdataset", "images in zip"])
def test_damaged_files_give_samples_or_our_errors(kind, tmp_path):
    context = multiprocessing.get_context("fork")
    progress, failures = context.Value("q", -1), context.Queue()

    def run():
        try:
            _fuzz(kind, tmp_path, CASES, progress)
        except BaseException as error:
            failures.put(f"{type(error).__name__}: {error}")
            raise

    child = context.Process(target=run)
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
    child.join()
    said = failures.get(timeout=1) if not failures.empty() else ""
    assert child.exitcode == 0, f"case {progress.value} {said or 'hangs, or ends the process'} ({child.exitcode})"
