"""Opening a benchmark: its items, and what can't be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...datasets.errors import DataError, RecordError, SettingError
from ...datasets.images.media import ImageFolder
from ...inference.questions import Unusable
from ..items import Item
from ..metrics import find_metric
from .item_draft import Draft, build
from .kinds import KINDS, check_kind, check_prompt
from .recognize import recognize, settle


@dataclass(frozen=True)
class Benchmark:
    """Questions with known answers.

    Attributes:
        name: The stem of the file, or the folder's name.
        kind: A key of `KINDS`.
        reason: Why it is taken for that kind, for the console.
        metric: Name of the metric that its items were checked for.
        prompt: The template that its questions were put into.
        items: What can be asked and measured, in the file's order.
        unusable: What can't, and why.
    """

    name: str
    kind: str
    reason: str
    metric: str
    prompt: str
    items: list[Item] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)


def open_benchmark(
    path: str | Path,
    kind: str | None = None,
    images: str | Path | None = None,
    cache: str | Path | None = None,
    *,
    metric: str | None = None,
    prompt: str | None = None,
) -> Benchmark:
    """Read a benchmark's file or folder as downloaded, or a file of one's own.

    Args:
        path: The file or folder.
        kind: A key of `KINDS`; None recognizes it by columns, keys and names.
        images: The image folder; None takes the folder of the file, and for a file of one's own absolute names.
        cache: Where images that a TSV file holds are written to, under names made from their content.
        metric: Another metric than the published one.
        prompt: Another prompt than the published one; `{question}`, `{hint}` and `{choices}` are filled in.

    Raises:
        SettingError: The kind can't be recognized, a folder isn't there, or not one item can be used.
    """
    path = Path(path)
    if kind is not None:
        check_kind(kind)
    if prompt is not None:
        check_prompt(prompt)
    if not path.exists():
        raise SettingError("data", f"{path} isn't there", "correct the path")
    source = recognize(path, cache)
    name, reason = settle(path, source, kind)
    base = path if path.is_dir() else path.parent
    folder = ImageFolder(images, base) if name == "own" else ImageFolder(images or base)
    found = list(source.read(name))
    drafts = [draft for _, draft in found if isinstance(draft, Draft)]
    measure = find_metric(metric or KINDS[name].metric or _own_metric(drafts))
    benchmark = Benchmark(
        path.stem if path.is_file() else path.name, name, reason, measure.name, prompt or KINDS[name].prompt
    )
    seen: set[str] = set()
    for place, draft in found:
        try:
            if isinstance(draft, DataError):
                raise draft
            item = build(draft, KINDS[name], prompt, folder, place)
            measure.check(item)
            if item.question.id in seen:
                raise RecordError("id", f"id {item.question.id!r} was used before", "give each its own", place)
        except DataError as error:
            benchmark.unusable.append(_unusable(place, error))
            continue
        seen.add(item.question.id)
        benchmark.items.append(item)
    if not benchmark.items:
        problem = f"; the first: {benchmark.unusable[0].message}" if benchmark.unusable else ""
        raise SettingError(
            "data", f"{path}: none of its {len(found)} questions can be used{problem}", "correct the file"
        )
    return benchmark


def _unusable(place: str, error: DataError) -> Unusable:
    message = str(error)
    return Unusable(place, message if place in message else f"{place}: {message}")


def _own_metric(drafts: list[Draft]) -> str:
    return "multiple_choice" if drafts and all(draft.choices for draft in drafts) else "exact_match"
