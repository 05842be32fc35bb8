"""Which samples of a mixture will train, which are left out, and why; known before training."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RecordError
from .bad_samples import ON_PURPOSE
from .plan.lengths import BROKEN, DROPPED, FATES, FITS

if TYPE_CHECKING:
    from .dataset import MultimodalDataset

SHOWN = 5  # records that one error names
REMEDY = "mend them, or leave them out: reject_list (tools/check_data.py --reject-list), or on_bad_sample='skip'"
KEPT = {"shrink_tiles": "with fewer tiles to fit max_length", "truncate_text": "with their end cut off to fit it"}


def _broken(dataset: "MultimodalDataset", fates: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of the unusable samples of each file, and the reason of each."""
    for number, part in enumerate(np.split(fates, dataset.ends[:-1])):
        places = np.flatnonzero(part == BROKEN)
        if len(places):
            lengths = dataset.lengths(number)
            reasons = [lengths.complaints[row].reason for row in dataset.picks[number][places].tolist()]
            yield places + (dataset.ends[number - 1] if number else 0), np.array(reasons)


def find_broken(dataset: "MultimodalDataset", fates: np.ndarray) -> np.ndarray:
    """Indices of the unusable samples, without those left out on purpose."""
    found = [indices[~np.isin(reasons, ON_PURPOSE)] for indices, reasons in _broken(dataset, fates)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def unusable_error(dataset: "MultimodalDataset", indices: np.ndarray) -> RecordError:
    """One error about all records of these samples."""
    records = dict.fromkeys(dataset.locate(int(index)) for index in indices)  # a record may be repeated
    errors = [why_left_out(dataset, number, row) for number, row in list(records)[:SHOWN]]
    lines = [f"{len(records)} records can't be used:", *map(str, errors)]
    if len(records) > SHOWN:
        lines.append(f"and {len(records) - SHOWN} more")
    return RecordError(errors[0].reason, "\n".join(lines) if len(records) > 1 else str(errors[0]), REMEDY)


def why_left_out(dataset: "MultimodalDataset", number: int, row: int) -> RecordError:
    """Why a record is left out of the plan."""
    source = dataset.sources[number].index.source(row)
    if row in dataset.rejected[number]:
        return RecordError("rejected", "on the reject list", place=source)
    complaint = dataset.lengths(number).complaints.get(row)
    if complaint is not None:
        return complaint.error(source)
    problem, remedy = "too long even with one tile per image", "raise max_length or shorten the record"
    return RecordError("too_long", problem, remedy, source)


def left_out(dataset: "MultimodalDataset", fates: np.ndarray) -> list[dict]:
    """The samples that a plan leaves out, each with index, dataset, dropped (the reason) and message.

    Args:
        fates: from `layout`.
    """
    entries = []
    for index in np.flatnonzero(fates >= DROPPED):
        number, row = dataset.locate(int(index))
        error = why_left_out(dataset, number, row)
        name = dataset.sources[number].name
        entries.append({"index": int(index), "dataset": name, "dropped": error.reason, "message": str(error)})
    return entries


def describe(dataset: "MultimodalDataset", fates: np.ndarray | None = None) -> str:
    """One line: how many samples will train, and what happens to the others.

    Args:
        fates: from `layout`; None where nothing is measured before training.
    """
    if fates is None:
        rejected = sum(
            int(np.isin(pick, list(rows)).sum()) for pick, rows in zip(dataset.picks, dataset.rejected, strict=True)
        )
        return (
            f"data: {len(dataset) - rejected:,} of {len(dataset):,} samples will be tried"
            + (f" ({rejected:,} rejected)" if rejected else "")
            + f"; unusable ones aren't known before they are met (on_bad_sample={dataset.on_bad_sample!r}): "
            "tools/check_data.py finds them all"
        )
    counts = Counter({name: int((fates == code).sum()) for code, name in enumerate(FATES)})
    for _, broken in _broken(dataset, fates):
        counts.update(broken.tolist())
    trained = int((fates < DROPPED).sum())
    reasons = ", ".join(
        f"{count:,} {name}"
        for name, count in counts.most_common()
        if count and name not in (*KEPT, FATES[FITS], FATES[BROKEN])
    )
    changes = ", ".join(f"{counts[name]:,} {words}" for name, words in KEPT.items() if counts[name])
    return (
        f"data: {trained:,} of {len(fates):,} samples will train"
        + (f"; left out: {reasons}" if reasons else "")
        + (f"; of those that train, {changes}" if changes else "")
    )
