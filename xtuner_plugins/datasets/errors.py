"""The errors that data can cause, in one place.

Every message says what is wrong, where, and what to do about it. `reason` is a short machine-readable
word (`image_missing`, `json`, `turn_order`...) that the checker and the ledger count by.
"""


class DataError(ValueError):
    """Something is wrong with the data or with a setting that describes it.

    Attributes:
        reason: a short word to count by.
        problem: what is wrong, without its place.
        remedy: what to do about it.
        place: where, `file:line` or a path or a setting's name ('' when the problem names it itself).
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
        """The same complaint, said of the record at `place` (`file:line`)."""
        return RecordError(
            self.reason, f"{self.place}: {self.problem}" if self.place else self.problem, self.remedy, place
        )
