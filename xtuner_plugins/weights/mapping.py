"""Names of tensors in two formats as data: one invertible table per pair of formats.

A row names one tensor on the left and one or several on the right. All formats here differ only in names and in how
whole rows are grouped, never in numbers, so a round trip is bit-exact.

Templates: ``{i}`` a layer index, ``{p}`` ``weight`` or ``bias``, ``{rest}`` anything. Example::

    Row("vision_model.encoder.layers.{i}.attn.qkv.{p}",
        ("vision_tower.encoder.layer.{i}.attention.q_proj.{p}", "...k_proj.{p}", "...v_proj.{p}"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .lazy import Joined, LazyTensor
from .reading import CheckpointError

_FIELDS = {"i": r"\d+", "p": r"weight|bias", "rest": r".+"}


@dataclass(frozen=True)
class Row:
    """One line of a table, and how the rows of the left tensor are dealt out to those on the right.

    ::

        left    q0 q1 k0 v0 | q2 q3 k1 v1 | ...          sizes (2, 1, 1): 2 query heads per group, a key, a value
        right   q0 q1 q2 q3 ...    k0 k1 ...    v0 v1 ...

    Attributes:
        left: template of one name.
        right: template of one name, or several.
        sizes: shares of the right tensors in each group; None for equal ones.
        groups: how many groups there are.
    """

    left: str
    right: str | tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def rights(self) -> tuple[str, ...]:
        """The right side as a tuple."""
        return (self.right,) if isinstance(self.right, str) else self.right

    def _cuts(self, num_rows: int) -> list[tuple[int, tuple[int, int]]]:
        """(index on the right, rows there) of the pieces of the left tensor, in its order."""
        sizes = self.sizes or (1,) * len(self.rights)
        unit, remainder = divmod(num_rows, self.groups * sum(sizes))
        if remainder:
            raise CheckpointError(f"{num_rows} rows can't be cut in {self.groups} groups of the shares {sizes}")
        counts = [size * unit for size in sizes]
        return [(k, (n * rows, (n + 1) * rows)) for n in range(self.groups) for k, rows in enumerate(counts)]

    def split(self, tensor: LazyTensor) -> list[LazyTensor]:
        """Left to right."""
        if len(self.rights) == 1:
            return [tensor]
        parts, start = [[] for _ in self.rights], 0
        for k, (a, b) in self._cuts(tensor.shape[0]):
            parts[k].append(tensor.rows(start, start + b - a))
            start += b - a
        return [Joined(pieces) for pieces in parts]

    def join(self, tensors: Sequence[LazyTensor]) -> LazyTensor:
        """Right to left.

        Raises:
            CheckpointError: they differ in dtype or width, or their rows don't fit the shares.
        """
        if len(tensors) == 1:
            return tensors[0]
        cuts = self._cuts(sum(tensor.shape[0] for tensor in tensors))
        alike = len({(each.dtype, each.shape[1:]) for each in tensors}) == 1
        if not alike or any(b > tensors[k].shape[0] for k, (_, b) in cuts):
            raise CheckpointError(
                f"tensors that belong together differ in dtype, width or shares ({self.sizes}): {tensors}"
            )
        return Joined([tensors[k].rows(*rows) for k, rows in cuts])


def _compile(template: str) -> re.Pattern:
    pattern = re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(template))
    return re.compile(pattern)


class KeyMapping:
    """An invertible table. The first row that matches a name counts.

    A row can have several names only on the right, so the names of training stand on either side; ``to_ours`` and
    ``to_theirs`` are ``to_left`` and ``to_right``, or the other way round.

    Args:
        rows: the table.
        left: name of the left format, for messages.
        right: name of the right format, for messages.
        ours: which side holds the names that training uses, ``left`` or ``right``.
        prefixes: alternative prefixes of right names in some directories, to the prefixes in the table.
    """

    def __init__(
        self, rows: Iterable[Row], left: str, right: str, *, ours: str, prefixes: Mapping[str, str] | None = None
    ):
        self.rows, self.left, self.right, self.ours, self._prefixes = tuple(rows), left, right, ours, prefixes or {}
        directions = (self.to_left, self.to_right)
        self.to_ours, self.to_theirs = directions if ours == "left" else directions[::-1]
        self._lefts = [(_compile(row.left), row, 0) for row in self.rows]
        self._rights = [(_compile(right), row, k) for row in self.rows for k, right in enumerate(row.rights)]

    def listed(self, name: str) -> str:
        """A right name with the prefix of the table."""
        for prefix, own in self._prefixes.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return name

    def _find(self, name: str, patterns: Sequence[tuple[re.Pattern, Row, int]]) -> tuple[Row, int, dict[str, str]]:
        """Row, index on its right side and template fields of a name; ``CheckpointError`` when no row covers it."""
        for pattern, row, k in patterns:
            if match := pattern.fullmatch(name):
                return row, k, match.groupdict()
        own, other = (self.left, self.right) if patterns is self._lefts else (self.right, self.left)
        raise CheckpointError(f"{name} is not a tensor of the {own} format, so it can't become {other}")

    def to_right(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their right names, lazily.

        Raises:
            CheckpointError: a name that no row covers, or rows that can't be dealt out.
        """
        result: dict[str, LazyTensor] = {}
        for name, tensor in tensors.items():
            row, _, fields = self._find(name, self._lefts)
            result.update(zip((right.format(**fields) for right in row.rights), row.split(tensor), strict=True))
        return result

    def to_left(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their left names, lazily.

        Raises:
            CheckpointError: a name that no row covers, or a group (q, k, v) that lacks a member or doesn't fit.
        """
        groups: dict[str, tuple[Row, dict[int, LazyTensor]]] = {}
        for name, tensor in tensors.items():
            row, k, fields = self._find(self.listed(name), self._rights)
            groups.setdefault(row.left.format(**fields), (row, {}))[1][k] = tensor
        for left, (row, members) in groups.items():
            if lacking := [right for k, right in enumerate(row.rights) if k not in members]:
                raise CheckpointError(f"{left} can't be put together: {', '.join(lacking)} missing")
        return {left: row.join([members[k] for k in sorted(members)]) for left, (row, members) in groups.items()}


def inside(mapping: KeyMapping) -> KeyMapping:
    """A language model's mapping inside a multimodal model; everything else stays as it is."""
    lm = "language_model."
    rows = [replace(row, left=lm + row.left, right=tuple(lm + right for right in row.rights)) for row in mapping.rows]
    rows += [Row("vision_model.{rest}", "vision_model.{rest}"), Row("mlp1.{rest}", "mlp1.{rest}")]
    return KeyMapping(rows, mapping.left, mapping.right, ours=mapping.ours)
