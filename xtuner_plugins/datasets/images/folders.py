"""The files of an image folder beside the names in records: which are missing, which does no record name."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from ..errors import DataError, MediaError
from .media import ImageFolder
from .stored import StoreImages


@dataclass
class FolderCount:
    """The files of a folder and the names in records.

    Attributes:
        folder: the image folder.
        num_files: files in it and its subfolders.
        num_named: different images and videos that records name.
        missing: those that aren't in the folder, sorted.
        superfluous: files that no record names, sorted.
    """

    folder: str
    num_files: int
    num_named: int
    missing: list[str] = field(default_factory=list)
    superfluous: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.num_files:,} files; records name {self.num_named:,} different ones, "
            f"{len(self.missing):,} of them missing; {len(self.superfluous):,} superfluous (no record names them)"
        )

    def examples(self, limit: int = 3) -> list[str]:
        """A line for each kind of finding, with its first names."""
        kinds = {"missing": self.missing, "superfluous": self.superfluous}
        return [
            f"{kind}: {', '.join(names[:limit])}{f' and {len(names) - limit:,} more' if len(names) > limit else ''}"
            for kind, names in kinds.items()
            if names
        ]

    def to_json(self) -> dict:
        """All of it, for a report that a program reads."""
        counts = {"num_missing": len(self.missing), "num_superfluous": len(self.superfluous)}
        return asdict(self) | counts


class FolderFiles:
    """The names of all files below a folder, from one walk over its directories; no file is asked for its state.

    Links are the exception: each is looked up, and directories behind links aren't listed (what is named in them is
    found all the same).

    Args:
        folder: the entry of `image_folders`.

    Raises:
        MediaError: of a zip or a store, whose names aren't listed (`not_listed`).
    """

    def __init__(self, folder: ImageFolder | StoreImages):
        if folder.folder is None:
            raise ValueError("only a folder has files to compare")
        if not isinstance(folder, ImageFolder):
            problem = "the names in it aren't listed, so they aren't compared"
            raise MediaError("not_listed", problem, "open the images: leave out --names-only", folder.folder)
        self.folder = folder
        self.files, links = _walk(folder.folder)
        self.num_files = len(self.files) + sum(os.path.isfile(os.path.join(folder.folder, link)) for link in links)

    def __contains__(self, name: str) -> bool:
        """Whether a name leads to a file or, for a video, to a folder of frames."""
        if name in self.files:
            return True
        try:
            return os.path.exists(self.folder.resolve(name))
        except DataError:
            return False

    def compare(self, named: Iterable[str]) -> FolderCount:
        """The counts for the names that records hold."""
        named = set(named)
        missing = sorted(name for name in named if name not in self)
        paths = {os.path.normpath(name) for name in named}
        folders = {path for path in paths - self.files if os.path.isdir(os.path.join(self.folder.folder, path))}
        superfluous = sorted(path for path in self.files - paths if not (folders and _is_below(path, folders)))
        return FolderCount(self.folder.folder, self.num_files, len(named), missing, superfluous)


def _walk(folder: str) -> tuple[set[str], list[str]]:
    """(files, links) below a folder, relative to it."""
    files, links, waiting = set(), [], [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in entries:
                name = inside + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name + os.sep)
                elif entry.is_symlink():
                    links.append(name)
                else:
                    files.add(name)
    return files, links


def _is_below(path: str, folders: set[str]) -> bool:
    head = os.path.dirname(path)
    while head:
        if head in folders:
            return True
        head = os.path.dirname(head)
    return False
