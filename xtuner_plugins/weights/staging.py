"""Puts a model directory in its place: whole or not at all, and never over its own inputs.

1. All files go to a hidden sibling ``.{name}.partial-{pid}-*``, ``config.json`` last, without which nothing opens it.
2. Files and directories are flushed to the disk.
3. A directory that is to be replaced becomes ``.{name}.replaced-{pid}-*``.
4. The new directory gets its name. After a kill before this, the next run puts the replaced one back (``recover``).
5. The replaced directory is removed.
"""

import errno
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .reading import CheckpointError
from .writer import write_json

CONFIG = "config.json"
_DISK_MARGIN = 64 * 2**20  # JSON, tokenizer and code files, rounded up generously


def check_target(out: str | Path, *, force: bool, inputs: Mapping[str, str | Path | None]) -> Path:
    """The directory to make as an absolute path without links, if it may be written.

    Args:
        out: the directory.
        force: an existing model directory may be replaced.
        inputs: paths that are read, by role; the target may not be, hold or be inside one of them.

    Raises:
        CheckpointError: the target exists, is no plain directory, or would overwrite an input.
    """
    # A link as the last part is refused below, so only the parts before it are followed.
    out = Path(os.path.realpath(Path(out).parent), Path(out).name)
    for role, path in inputs.items():
        if path is not None and os.path.exists(path):
            place = Path(os.path.realpath(path))
            overwrites = Path(os.path.realpath(out)) in (place, *place.parents)
            if overwrites or place in out.parents:
                how = "overwrite" if overwrites else "lie inside"
                raise CheckpointError(f"the output {out} would {how} the {role} {path}; choose another")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise CheckpointError(f"{out} exists and is not a plain directory; choose another name")
    recover(out)
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise CheckpointError(f"{out} exists already; choose another name or replace it with --force")
        if not (out / CONFIG).is_file():
            raise CheckpointError(f"{out} holds no {CONFIG}, and --force replaces only model directories; remove it")
    return out


@contextmanager
def staged_directory(out: Path, config: Mapping, num_bytes: int) -> Iterator[Path]:
    """Yields a hidden sibling to write into; on a clean exit it gets its config and becomes ``out``.

    On any error it vanishes, and an existing ``out`` is as it was.

    Args:
        out: from ``check_target``.
        config: what ``config.json`` will hold, written last.
        num_bytes: of the weights.

    Raises:
        CheckpointError: too little free space, or the file system refused something.
    """
    parent = next(each for each in out.parents if each.exists())
    needed, free = num_bytes + _DISK_MARGIN, shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(f"{out} needs {needed / 1e9:.2f} GB but only {free / 1e9:.2f} GB are free on {parent}")
    run = f"{os.getpid()}-{secrets.token_hex(4)}"
    stage, replaced = (out.with_name(f".{out.name}.{what}-{run}") for what in ("partial", "replaced"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in _beside(out, "partial"):
            if not Path("/proc", path.name.split("-")[-2]).exists():  # its process was killed
                shutil.rmtree(path, ignore_errors=True)
        stage.mkdir()  # with default permissions (umask), unlike tempfile's
        yield stage
        write_json(stage / CONFIG, config)
        for root, _, files in os.walk(stage):
            for name in (*files, "."):
                sync(Path(root, name))
        if out.exists():
            os.rename(out, replaced)
        os.rename(stage, out)
        sync(out.parent)
    except OSError as error:
        reason = f"the disk is full ({error})" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise CheckpointError(f"{out} can't be written: {reason}; nothing was changed") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        recover(out)


def _beside(out: Path, what: str) -> list[Path]:
    """What runs have hidden beside ``out``."""
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.{what}-*"))


def recover(out: Path) -> None:
    """Puts back what an interrupted run had renamed away from ``out``, or removes it if ``out`` is complete."""
    for hidden in _beside(out, "replaced"):
        if not (hidden / CONFIG).is_file() or (out / CONFIG).is_file():
            (hidden / CONFIG).unlink(missing_ok=True)  # first, so that no part of it ever loads
            shutil.rmtree(hidden, ignore_errors=True)
            continue
        if out.exists():
            shutil.rmtree(out)
        os.rename(hidden, out)
        logging.getLogger(__name__).warning("%s is back as it was: a run that was to replace it did not end", out)


def sync(path: Path) -> None:
    """Waits until a file's data, or a directory's entries, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync directories
            raise
    finally:
        os.close(fd)
