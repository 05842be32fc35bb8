"""`export_manifest.json`: what an export was made from, and SHA-256 of its own files.

::

    {"base": {"path": "models/base", "sha256": {"config.json": "...", "model.safetensors": "..."}},
     "checkpoint": {...}, "config": {...}, "kind": "mmengine", "dtype": "as the base", "format": "as the base",
     "replaced": [...], "merged": [...], "versions": {"torch": "2.11.0", ...},
     "files": {"config.json": "...", "model.safetensors": "...", ...}}
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import CheckpointError, from_outside

FILE = "export_manifest.json"


def digest(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    found, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            found.update(buffer[:size])
    return found.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder and below it, by its name there; a few at a time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((str(path.relative_to(folder)) for path in files), pool.map(digest, files), strict=True))


def check(directory: Path, *, weights: bool) -> None:
    """Compares a model directory's files, the small ones or all, with its manifest; one without a manifest passes.

    Raises:
        CheckpointError: names the files that changed or lack.
    """
    from .reading import read_json  # imports torch, which those who only hash do without

    stored = read_json(directory / FILE, missing={}).get("files", {})
    held = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    with from_outside(directory / FILE):
        asked = sorted(name for name in stored if weights or not name.endswith(".safetensors"))
        changed = [name for name in asked if name not in held or digest(held[name]) != stored[name]]
    if changed:
        said = f"{directory} is not as it was exported: {', '.join(changed[:4])} changed since"
        raise CheckpointError(f"{said}; export it again, or remove {FILE} if you made the change")
