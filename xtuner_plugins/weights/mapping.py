"""Names of tensors in two formats as data: one invertible table per format and the names of training.

A row names one tensor on one side and one or several on the other. All formats here differ only in names and in how
whole rows are grouped, never in numbers, so a round trip is bit-exact.

Templates: ``{i}`` a layer index, ``{p}`` ``weight`` or ``bias``, ``{rest}`` anything. Example, ours first::

    Row("vision_model.encoder.layers.{i}.attn.qkv.{p}",
        ("vision_tower.encoder.layer.{i}.attention.q_proj.{p}", "...k_proj.{p}", "...v_proj.{p}"))
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .lazy import Joined, LazyTensor
from .reading import CheckpointError

_FIELDS = {"i": r"\d+", "p": r"weight|bias", "rest": r".+"}


@dataclass(frozen=True)
class Row:
    """One line of a table, and how the rows of a fused tensor are dealt out to its parts on the other side.

    ::

        fused   q0 q1 k0 v0 | q2 q3 k1 v1 | ...          sizes (2, 1, 1): 2 query heads per group, a key, a value
        parts   q0 q1 q2 q3 ...    k0 k1 ...    v0 v1 ...

    Attributes:
        ours, theirs: template of a name of training, or of the other format; or of several.
        sizes: shares of the parts in each group; None for equal ones.
        groups: how many groups there are.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ours and theirs as tuples."""
        ours, theirs = ((side,) if isinstance(side, str) else side for side in (self.ours, self.theirs))
        return ours, theirs

    def turn(self, tensors: Sequence[LazyTensor], count: int) -> list[LazyTensor]:
        """The tensors of one side as the ``count`` tensors of the other.

        Raises:
            CheckpointError: parts differ in dtype or width, or rows don't fit the shares.
        """
        if len(tensors) == count:
            return list(tensors)
        sizes, num_rows = self.sizes or (1,) * max(len(tensors), count), sum(tensor.shape[0] for tensor in tensors)
        unit, remainder = divmod(num_rows, self.groups * sum(sizes))
        if remainder:
            raise CheckpointError(f"{num_rows} rows can't be cut in {self.groups} groups of the shares {sizes}")
        counts, groups = [size * unit for size in sizes], range(self.groups)
        if len(tensors) == 1:
            parts, start = [], 0
            for rows in counts:
                starts = (start + n * sum(counts) for n in groups)
                parts.append(Joined([tensors[0].rows(first, first + rows) for first in starts]))
                start += rows
            return parts
        alike = len({(each.dtype, each.shape[1:]) for each in tensors}) == 1
        if not alike or [each.shape[0] for each in tensors] != [self.groups * rows for rows in counts]:
            told = "tensors that belong together differ in dtype, width or shares"
            raise CheckpointError(f"{told} ({self.sizes}): {list(tensors)}")
        dealt = list(zip(tensors, counts, strict=True))
        return [Joined([each.rows(n * rows, (n + 1) * rows) for n in groups for each, rows in dealt])]


def _compile(template: str) -> re.Pattern:
    pattern = re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(template))
    return re.compile(pattern)


class KeyMapping:
    """An invertible table. The first row that matches a name counts.

    Args:
        rows: the table.
        ours: what messages call the names of training.
        theirs: what messages call the other format.
        prefixes: alternative prefixes of their names in some directories, to the prefixes in the table.
    """

    def __init__(self, rows: Iterable[Row], ours: str, theirs: str, *, prefixes: Mapping[str, str] | None = None):
        self.rows, self.names, self._prefixes = tuple(rows), (ours, theirs), prefixes or {}
        self._patterns = [[(_compile(name), row) for row in self.rows for name in row.sides[side]] for side in (0, 1)]

    def listed(self, name: str) -> str:
        """A name of theirs with the prefix of the table."""
        found = next((prefix for prefix in self._prefixes if name.startswith(prefix)), None)
        return name if found is None else self._prefixes[found] + name.removeprefix(found)

    def to_theirs(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under their names in the other format, lazily.

        Raises:
            CheckpointError: a name that no row covers, or a group (q, k, v) that lacks a member or doesn't fit.
        """
        return self._turn(tensors, 0)

    def to_ours(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """All tensors under the names of training, lazily; errors as for `to_theirs`."""
        return self._turn({self.listed(name): tensor for name, tensor in tensors.items()}, 1)

    def _turn(self, tensors: Mapping[str, LazyTensor], side: int) -> dict[str, LazyTensor]:
        groups: dict[tuple[str, ...], tuple[Row, dict[str, LazyTensor | None]]] = {}
        for name, tensor in tensors.items():
            row, fields = self._find(name, side)
            here, there = (tuple(each.format(**fields) for each in row.sides[s]) for s in (side, 1 - side))
            groups.setdefault(there, (row, dict.fromkeys(here)))[1][name] = tensor
        result = {}
        for names, (row, held) in groups.items():
            if lacking := [name for name, tensor in held.items() if tensor is None]:
                raise CheckpointError(f"{', '.join(names)} can't be put together: {', '.join(lacking)} missing")
            result |= zip(names, row.turn(list(held.values()), len(names)), strict=True)
        return result

    def _find(self, name: str, side: int) -> tuple[Row, dict[str, str]]:
        """Row and template fields of a name; ``CheckpointError`` when no row covers it."""
        for pattern, row in self._patterns[side]:
            if match := pattern.fullmatch(name):
                return row, match.groupdict()
        own, other = self.names[side], self.names[1 - side]
        raise CheckpointError(f"{name} is not a tensor of the {own} format, so it can't become {other}")


def inside(mapping: KeyMapping) -> KeyMapping:
    """A language model's mapping inside a multimodal model; everything else stays as it is."""
    rows = [
        Row(*(tuple(f"language_model.{name}" for name in side) for side in row.sides), row.sizes, row.groups)
        for row in mapping.rows
    ]
    rows += [Row(name, name) for name in ("vision_model.{rest}", "mlp1.{rest}")]
    return KeyMapping(rows, *mapping.names)
