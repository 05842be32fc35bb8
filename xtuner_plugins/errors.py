"""The errors that data and settings can cause.

Every message says what is wrong, where, and what to do about it. `reason` is a short machine-readable
word (`image_missing`, `json`, `turn_order`...) by which the checker and the ledger count.
"""

import errno
import resource
from collections.abc import Callable


class DataError(ValueError):
    """Something is wrong with the data or with a setting that describes it.

    Attributes:
        reason: a short word to count by.
        problem: what is wrong, without its place.
        remedy: what to do about it.
        place: `file:line`, a path or the name of a setting; '' where the problem names it.
    """

    def __init__(self, reason: str, problem: str, remedy: str = "", place: str = ""):
        self.reason, self.problem, self.remedy, self.place = reason, problem, remedy, place
        message = f"{place}: {problem}" if place else problem
        super().__init__(f"{message}; {remedy}" if remedy else message)

    def __reduce__(self):  # errors travel from DataLoader workers by pickle
        return type(self), (self.reason, self.problem, self.remedy, self.place)


class SettingError(DataError):
    """A setting of the dataset (or a path that a setting names) can't be used."""


class RecordError(DataError):
    """A record of an annotation file can't be used; `place` is `file:line`."""


class MediaError(DataError):
    """An image or video can't be used; `place` is its path."""

    def in_record(self, place: str) -> RecordError:
        """The same complaint about the record at `place` (`file:line`)."""
        problem = f"{self.place}: {self.problem}" if self.place else self.problem
        return RecordError(self.reason, problem, self.remedy, place)


class SourceError(OSError):
    """A file has changed or gone, or a store doesn't answer: about no single record, so it stops under every policy."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an error of any library says, as part of a message; its type where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def told(error: BaseException) -> str:
    """What an error says; one of the operating system names its file first, and ends with what to do about it."""
    if not (isinstance(error, OSError) and error.strerror and (error.filename or error.errno == errno.ENOSPC)):
        return str(error)
    remedy = "make room" if error.errno == errno.ENOSPC else "name another path, or give permission"
    return f"{error.filename or 'a file'}: {error.strerror}; {remedy} there"


def out_of_files(error: BaseException, kind: Callable[..., DataError], place: str = "") -> DataError | None:
    """The complaint of this kind that the process has too many files open; None for any other error."""
    if getattr(error, "errno", None) != errno.EMFILE:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    problem = f"can't be opened, because this process has as many files open as it may ({limit:,})"
    return kind("open_files", problem, "raise the limit of the shell that starts it (ulimit -n 65536)", place)
