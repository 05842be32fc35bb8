"""Key mappings between formats, as data: one invertible table per pair of formats.

A row names one tensor on the left and one or several on the right. All formats here differ only in names and in how
whole rows are grouped, never in numbers, so a round trip is bit-exact.

Templates: ``{i}`` a layer index, ``{p}`` ``weight`` or ``bias``, ``{rest}`` anything. Example::

    Row("vision_model.encoder.layers.{i}.attn.qkv.{p}",
        ("vision_tower.encoder.layer.{i}.attention.q_proj.{p}", "...k_proj.{p}", "...v_proj.{p}"), Thirds())
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .lazy import Joined, LazyTensor
from .reading import CheckpointError

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
    """One tensor on the left, its rows split over several on the right.

    Attributes:
        sizes: relative shares, such as (1, 1, 1) for equal thirds.
    """

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
    """Tensors joined along dimension 0.

    Raises:
        CheckpointError: they differ in dtype or width.
    """
    if len({t.dtype for t in tensors}) != 1 or len({t.shape[1:] for t in tensors}) != 1:
        raise CheckpointError(f"tensors that belong together differ in dtype or width: {tensors}")
    return Joined(tensors, (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:]))


@dataclass(frozen=True)
class Row:
    """One line of a table: a template on the left, one or several on the right, and how rows are regrouped."""

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
        self.to_ours, self.to_theirs = self.to_left, self.to_right
        if ours == "right":
            self.to_ours, self.to_theirs = self.to_right, self.to_left
        self._lefts = [(_compile(row.left), row, 0) for row in self.rows]
        self._rights = [(_compile(right), row, k) for row in self.rows for k, right in enumerate(row.rights)]

    def listed(self, name: str) -> str:
        """A right name with the prefix of the table."""
        for prefix, own in self._prefixes.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return name

    @staticmethod
    def _find(name: str, patterns: Sequence[tuple[re.Pattern, Row, int]]) -> tuple[Row, int, dict[str, str]] | None:
        """Row, index on its right side and template fields of a name; None when no row covers it."""
        for pattern, row, k in patterns:
            if match := pattern.fullmatch(name):
                return row, k, match.groupdict()
        return None

    def to_right(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their right names, lazily.

        Raises:
            CheckpointError: a name that no row covers.
        """
        result: dict[str, LazyTensor] = {}
        for name, tensor in tensors.items():
            found = self._find(name, self._lefts)
            if found is None:
                raise CheckpointError(
                    f"{name} is not a tensor of the {self.left} format, so it can't become {self.right}"
                )
            row, _, fields = found
            try:
                parts = row.how.split(tensor)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from None
            result.update(zip((right.format(**fields) for right in row.rights), parts, strict=True))
        return result

    def to_left(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their left names, lazily.

        Raises:
            CheckpointError: a name that no row covers, or a group (q, k, v) of which a member is missing.
        """
        groups: dict[str, tuple[Row, dict[int, LazyTensor]]] = {}
        for name, tensor in tensors.items():
            found = self._find(self.listed(name), self._rights)
            if found is None:
                raise CheckpointError(
                    f"{name} is not a tensor of the {self.right} format, so it can't become {self.left}"
                )
            row, k, fields = found
            groups.setdefault(row.left.format(**fields), (row, {}))[1][k] = tensor
        result = {}
        for left, (row, members) in groups.items():
            if len(members) != len(row.rights):
                lacking = [right for k, right in enumerate(row.rights) if k not in members]
                raise CheckpointError(f"{left} can't be put together: {', '.join(lacking)} missing")
            try:
                result[left] = row.how.join([members[k] for k in sorted(members)])
            except CheckpointError as error:
                raise CheckpointError(f"{left}: {error}") from None
        return result


def inside(mapping: KeyMapping) -> KeyMapping:
    """A language model's mapping inside a multimodal model; everything else stays as it is."""
    lm = "language_model."
    rows = [Row(lm + row.left, tuple(lm + right for right in row.rights), row.how) for row in mapping.rows]
    rows += [Row("vision_model.{rest}", "vision_model.{rest}"), Row("mlp1.{rest}", "mlp1.{rest}")]
    return KeyMapping(rows, mapping.left, mapping.right, ours=mapping.ours)
