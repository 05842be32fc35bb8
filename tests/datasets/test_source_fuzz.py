"""Damaged files of every kind of source give samples or our errors, never anything else.

FUZZ_CASES=200000 python -m pytest tests/datasets/test_source_fuzz.py -m "slow or not slow" runs as many per kind.
Each case changes some bytes of a small file, or cuts it off; then every record and image that can be named is read.
Cases run in a child process, so that a crash or endless loop of a library is found, and says which case it was.
"""

import gzip
import multiprocessing
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.datasets.source_kinds import as_lines, as_rows, make_images, make_records, write_table, write_webdataset
from xtuner_plugins.datasets.images.media import image_size, load_image
from xtuner_plugins.datasets.images.stored import open_images
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import DataError
from xtuner_plugins.files import get_cache_dir

CASES = int(os.environ.get("FUZZ_CASES", 200))
SECONDS = 60 + CASES  # of a kind; most cases take milliseconds


def read_all(path: Path, folder: Path | None) -> int:
    """Reads everything that can be read; returns the number of records."""
    records = open_records(path)
    images = open_images(folder, path.parent)
    num_read = 0
    for row in range(min(len(records), 30)):
        try:
            record = parse_record(records.parse(row), records.source(row))
            for medium in record.media:
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


def make_files(kind: str, folder: Path) -> tuple[Path, str | None]:
    """(the file that is damaged, the archive of images beside it if that one is damaged)."""
    images, records = make_images(folder / "images"), make_records()[:4]
    for name in ("a.jpg", "b.png", "deep/c.jpg"):  # small ones: cases should be many
        with Image.open(images / name) as image:
            image.resize((24, 16)).save(images / name)
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(as_lines(records)))
        return folder / "a.jsonl.gz", None
    if kind.startswith("parquet"):
        write_table(as_rows(records, images, "struct"), folder / "a.parquet", group=2)
        return folder / "a.parquet", None
    if kind == "save_to_disk":
        import datasets

        datasets.Dataset.from_list(as_rows(records, images, "struct")).save_to_disk(folder / "saved")
        return next((folder / "saved").glob("*.arrow")), None
    if kind == "webdataset":
        write_webdataset(records, images, folder)
        return folder / "000000.tar", None
    (folder / "a.jsonl").write_bytes(as_lines(records))
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.jpg", "b.png", "deep/c.jpg"):
            archive.write(images / name, name)
    return folder / "images.zip", "a.jsonl"


def _fuzz(kind: str, folder: Path, cases: int, progress) -> None:
    target, annotation = make_files(kind, folder)
    whole = target.read_bytes()
    path = target.parent if kind == "save_to_disk" else folder / annotation if annotation else target
    images = target if annotation else folder / "images" if kind == "jsonl.gz" else None
    read = [read_all(path, images)]
    for case in range(cases):
        progress.value = case
        data = damage(whole, random.Random(f"{kind} {case}"))
        target.write_bytes(data)
        os.utime(target, ns=(case, case))
        try:
            read.append(read_all(path, images))
        except DataError as error:
            assert str(error)
            read.append(-1)
        shutil.rmtree(get_cache_dir(), ignore_errors=True)
    assert read[0] == 4, "the whole file is read"
    assert min(read) < 4, "no case has damaged anything"


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet", "save_to_disk", "webdataset", "zip"])
def test_damaged_files_give_samples_or_our_errors(kind, tmp_path):
    context = multiprocessing.get_context("fork")
    progress, failures = context.Value("q", -1), context.Queue()

    def run():
        try:
            _fuzz(kind, tmp_path, CASES, progress)
        except BaseException as error:
            failures.put(f"case {progress.value}: {type(error).__name__}: {error}")
            raise

    child = context.Process(target=run)
    child.start()
    child.join(SECONDS)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    said = failures.get(timeout=1) if not failures.empty() else ""
    assert not hangs, f"case {progress.value} hangs"
    assert child.exitcode == 0, f"{said or f'case {progress.value} ends the process'} (exit code {child.exitcode})"
