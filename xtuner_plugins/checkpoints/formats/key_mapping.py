"""Key mappings between formats, as data: one invertible table per pair of formats.

A row names one tensor on the left and one or several on the right; every difference between the formats that this
project knows is a renaming or a regrouping of whole rows, never arithmetic, so a round trip is exact to the bit.

Templates: ``{i}`` a layer number, ``{p}`` ``weight`` or ``bias``, ``{rest}`` anything. Example::

    Row("vision_model.encoder.layers.{i}.attn.qkv.{p}",
        ("vision_tower.encoder.layer.{i}.attention.q_proj.{p}", "...k_proj.{p}", "...v_proj.{p}"), Thirds())
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..io.reader import CheckpointError
from ..io.tensors import Joined, LazyTensor

_FIELDS = {"i": r"\d+", "p": r"weight|bias", "rest": r".+"}


class Same:
    """One tensor on either side, unchanged."""

    def split(self, tensor: LazyTensor) -> list[LazyTensor]:
        """Left to right."""
        return [tensor]

    def join(self, tensors: Sequence[LazyTensor]) -> LazyTensor:
        """Right to left."""
        return tensors[0]


@dataclass(frozen=True)
class Parts(Same):
    """Rows of one tensor as several: ``sizes`` are relative shares, e.g. (1, 1, 1) for equal thirds."""

    sizes: tuple[int, ...]

    def split(self, tensor):
        unit, remainder = divmod(tensor.shape[0], sum(self.sizes))
        if remainder:
            raise CheckpointError(f"{tensor.shape[0]} rows can't be cut in the shares {self.sizes}")
        starts = [sum(self.sizes[:k]) * unit for k in range(len(self.sizes) + 1)]
        return [tensor.rows(a, b) for a, b in zip(starts, starts[1:], strict=False)]

    def join(self, tensors):
        return stack(tensors)


def stack(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors that belong together as one, row after row.

    Raises:
        CheckpointError: they differ in dtype or width.
    """
    if len({t.dtype for t in tensors}) != 1 or len({t.shape[1:] for t in tensors}) != 1:
        raise CheckpointError(f"tensors that belong together differ in dtype or width: {tensors}")
    return Joined(tensors, (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:]))


@dataclass(frozen=True)
class Row:
    """One line of a table: a template on the left, one or several on the right, and how the rows regroup."""

    left: str
    right: str | tuple[str, ...]
    how: Same = field(default_factory=Same)

    @property
    def rights(self) -> tuple[str, ...]:
        """The right side as a tuple."""
        return (self.right,) if isinstance(self.right, str) else self.right


def _compile(template: str) -> re.Pattern:
    pattern = re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(template))
    return re.compile(pattern)


class KeyMapping:
    """An invertible table. The first row that matches a name counts.

    ``to_ours`` and ``to_theirs`` are ``to_left`` and ``to_right``, whichever way the table was written: a row can only
    have several names on the right.

    Args:
        rows: the table.
        left: name of the left format, for messages.
        right: name of the right format, for messages.
        ours: which side holds the names that training uses, ``left`` or ``right``.
        prefixes: prefixes of right names that some directories have instead of those in the table.
    """

    def __init__(
        self, rows: Iterable[Row], left: str, right: str, *, ours: str, prefixes: Mapping[str, str] | None = None
    ):
        self.rows, self.left, self.right, self.ours, self._prefixes = tuple(rows), left, right, ours, prefixes or {}
        self.to_ours, self.to_theirs = self.to_left, self.to_right
        if ours == "right":
            self.to_ours, self.to_theirs = self.to_right, self.to_left
        self._lefts = [_compile(row.left) for row in self.rows]
        self._rights = [[_compile(t) for t in row.rights] for row in self.rows]

    def names_right(self, name: str) -> tuple[str, ...] | None:
        """What a left name becomes, or None when no row covers it."""
        for row, pattern in zip(self.rows, self._lefts, strict=True):
            match = pattern.fullmatch(name)
            if match:
                return tuple(t.format(**match.groupdict()) for t in row.rights)
        return None

    def name_left(self, name: str) -> str | None:
        """What a right name belongs to, or None when no row covers it."""
        found = self._find_right(name)
        return found[0] if found else None

    def listed(self, name: str) -> str:
        """A right name as the table has it, where a directory has another prefix."""
        for prefix, own in self._prefixes.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return name

    def _find_right(self, name: str) -> tuple[str, int, int] | None:
        name = self.listed(name)
        for r, row in enumerate(self.rows):
            for k, pattern in enumerate(self._rights[r]):
                match = pattern.fullmatch(name)
                if match:
                    return row.left.format(**match.groupdict()), r, k
        return None

    def to_right(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their right names, lazily.

        Raises:
            CheckpointError: a name that no row covers.
        """
        result: dict[str, LazyTensor] = {}
        for name, tensor in tensors.items():
            for row, pattern in zip(self.rows, self._lefts, strict=True):
                match = pattern.fullmatch(name)
                if match:
                    names = [t.format(**match.groupdict()) for t in row.rights]
                    try:
                        result.update(zip(names, row.how.split(tensor), strict=True))
                    except CheckpointError as error:
                        raise CheckpointError(f"{name}: {error}") from None
                    break
            else:
                raise CheckpointError(
                    f"{name} is not a tensor of the {self.left} format, so it can't become {self.right}"
                )
        return result

    def to_left(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their left names, lazily.

        Raises:
            CheckpointError: a name that no row covers, or a group (q, k, v) of which a member is missing.
        """
        groups: dict[str, tuple[int, dict[int, LazyTensor]]] = {}
        for name, tensor in tensors.items():
            found = self._find_right(name)
            if found is None:
                raise CheckpointError(
                    f"{name} is not a tensor of the {self.right} format, so it can't become {self.left}"
                )
            left, r, k = found
            groups.setdefault(left, (r, {}))[1][k] = tensor
        result = {}
        for left, (r, members) in groups.items():
            if len(members) != len(self.rows[r].rights):
                lacking = [t for k, t in enumerate(self.rows[r].rights) if k not in members]
                raise CheckpointError(f"{left} can't be put together: {', '.join(lacking)} missing")
            try:
                result[left] = self.rows[r].how.join([members[k] for k in sorted(members)])
            except CheckpointError as error:
                raise CheckpointError(f"{left}: {error}") from None
        return result


def prefixed(rows: Iterable[Row], left: str = "", right: str = "") -> list[Row]:
    """The same rows under prefixes (a mapping of an LLM inside a multimodal model)."""
    return [Row(left + row.left, tuple(right + t for t in row.rights), row.how) for row in rows]


def inside(mapping: KeyMapping, prefix: str = "language_model.") -> KeyMapping:
    """A language model's mapping inside a multimodal model; everything else stays as it is."""
    others = [Row("vision_model.{rest}", "vision_model.{rest}"), Row("mlp1.{rest}", "mlp1.{rest}")]
    rows = [*prefixed(mapping.rows, prefix, prefix), *others]
    return KeyMapping(rows, mapping.left, mapping.right, ours=mapping.ours)
