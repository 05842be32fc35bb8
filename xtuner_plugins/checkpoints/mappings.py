"""Key mappings between formats, as data: one invertible table a pair of formats.

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

from xtuner_plugins.checkpoints.reader import CheckpointError
from xtuner_plugins.checkpoints.tensors import Joined, LazyTensor

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
        return _stack(tensors)


@dataclass(frozen=True)
class GroupedQKV(Same):
    """InternLM2's ``wqkv``: for each key/value head its query heads, then its key, then its value.

    ::

        wqkv rows   q0 q1 k0 v0 | q2 q3 k1 v1 | ...        2 query heads a group, each head_dim rows
        q           q0 q1 q2 q3 ...    k  k0 k1 ...    v  v0 v1 ...
    """

    num_heads: int
    num_kv_heads: int

    @property
    def _group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def split(self, tensor):
        group = self._group
        heads = self.num_kv_heads * (group + 2)
        dim, remainder = divmod(tensor.shape[0], heads)
        if remainder:
            raise CheckpointError(f"wqkv has {tensor.shape[0]} rows, not a multiple of {heads} heads")
        block = (group + 2) * dim
        cuts = [(0, group * dim), (group * dim, (group + 1) * dim), ((group + 1) * dim, block)]
        return [_stack([tensor.rows(n * block + a, n * block + b) for n in range(self.num_kv_heads)]) for a, b in cuts]

    def join(self, tensors):
        q, k, v = tensors
        dim = k.shape[0] // self.num_kv_heads
        wide = self._group * dim
        pieces = []
        for n in range(self.num_kv_heads):
            pieces += [q.rows(n * wide, (n + 1) * wide), k.rows(n * dim, (n + 1) * dim), v.rows(n * dim, (n + 1) * dim)]
        return _stack(pieces)


def _stack(tensors: Sequence[LazyTensor]) -> LazyTensor:
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

    Args:
        rows: the table.
        left: name of the left format, for messages.
        right: name of the right format, for messages.
    """

    def __init__(self, rows: Iterable[Row], left: str, right: str):
        self.rows, self.left, self.right = tuple(rows), left, right
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

    def _find_right(self, name: str) -> tuple[str, int, int] | None:
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
                    except CheckpointError as e:
                        raise CheckpointError(f"{name}: {e}") from None
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
            except CheckpointError as e:
                raise CheckpointError(f"{left}: {e}") from None
        return result


def prefixed(rows: Iterable[Row], left: str = "", right: str = "") -> list[Row]:
    """The same rows under prefixes (a mapping of an LLM inside a multimodal model)."""
    return [Row(left + row.left, tuple(right + t for t in row.rights), row.how) for row in rows]


# Standalone InternViT directory <-> the tower inside an official directory.
STANDALONE_VISION = KeyMapping([Row("{rest}", "vision_model.{rest}")], "standalone vision", "official")

_VIT, _HF_VIT = "vision_model.encoder.layers.{i}.", "vision_tower.encoder.layer.{i}."

# Official <-> transformers' own InternVLForConditionalGeneration, in the names that lie on disk.
OFFICIAL_NATIVE = KeyMapping(
    [
        Row("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
        Row("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
        Row("vision_model.embeddings.patch_embedding.{p}", "vision_tower.embeddings.patch_embeddings.projection.{p}"),
        Row(
            _VIT + "attn.qkv.{p}",
            tuple(f"{_HF_VIT}attention.{n}_proj.{{p}}" for n in "qkv"),
            Parts((1, 1, 1)),
        ),
        Row(_VIT + "attn.proj.{p}", _HF_VIT + "attention.projection_layer.{p}"),
        Row(_VIT + "attn.q_norm.weight", _HF_VIT + "attention.q_norm.weight"),
        Row(_VIT + "attn.k_norm.weight", _HF_VIT + "attention.k_norm.weight"),
        Row(_VIT + "norm1.{p}", _HF_VIT + "layernorm_before.{p}"),
        Row(_VIT + "norm2.{p}", _HF_VIT + "layernorm_after.{p}"),
        Row(_VIT + "ls1", _HF_VIT + "lambda_1"),
        Row(_VIT + "ls2", _HF_VIT + "lambda_2"),
        Row(_VIT + "mlp.fc1.{p}", _HF_VIT + "mlp.fc1.{p}"),
        Row(_VIT + "mlp.fc2.{p}", _HF_VIT + "mlp.fc2.{p}"),
        Row("mlp1.0.{p}", "multi_modal_projector.layer_norm.{p}"),
        Row("mlp1.1.{p}", "multi_modal_projector.linear_1.{p}"),
        Row("mlp1.3.{p}", "multi_modal_projector.linear_2.{p}"),
        Row("language_model.{rest}", "language_model.{rest}"),
    ],
    "official InternVL",
    "transformers InternVL",
)

# CLIP or SigLIP with Linear-GELU-Linear <-> LlavaForConditionalGeneration.
LLAVA_TYPE_LLAVA = KeyMapping(
    [
        Row("vision_model.vision_model.{rest}", "vision_tower.vision_model.{rest}"),
        Row("mlp1.0.{p}", "multi_modal_projector.linear_1.{p}"),
        Row("mlp1.2.{p}", "multi_modal_projector.linear_2.{p}"),
        Row("language_model.{rest}", "language_model.{rest}"),
    ],
    "LLaVA-type",
    "transformers Llava",
)


def internlm2_llama(num_heads: int, num_kv_heads: int) -> KeyMapping:
    """InternLM2 <-> Llama, names without prefix. No rotary permutation: both rotate halves."""
    left, right = "model.layers.{i}.", "model.layers.{i}."
    grouped = GroupedQKV(num_heads, num_kv_heads)
    return KeyMapping(
        [
            Row("model.tok_embeddings.weight", "model.embed_tokens.weight"),
            Row(left + "attention.wqkv.{p}", tuple(f"{right}self_attn.{n}_proj.{{p}}" for n in "qkv"), grouped),
            Row(left + "attention.wo.{p}", right + "self_attn.o_proj.{p}"),
            Row(left + "feed_forward.w1.weight", right + "mlp.gate_proj.weight"),
            Row(left + "feed_forward.w3.weight", right + "mlp.up_proj.weight"),
            Row(left + "feed_forward.w2.weight", right + "mlp.down_proj.weight"),
            Row(left + "attention_norm.weight", right + "input_layernorm.weight"),
            Row(left + "ffn_norm.weight", right + "post_attention_layernorm.weight"),
            Row("model.norm.weight", "model.norm.weight"),
            Row("output.weight", "lm_head.weight"),
        ],
        "InternLM2",
        "Llama",
    )


_QWEN, _QWEN2 = "transformer.h.{i}.", "model.layers.{i}."

# Qwen (the first, Qwen-7B-Chat) <-> Qwen2, names without prefix. Its w1 is the up, its w2 the gate projection.
QWEN_QWEN2 = KeyMapping(
    [
        Row("transformer.wte.weight", "model.embed_tokens.weight"),
        Row(_QWEN + "ln_1.weight", _QWEN2 + "input_layernorm.weight"),
        Row(_QWEN + "ln_2.weight", _QWEN2 + "post_attention_layernorm.weight"),
        Row(_QWEN + "attn.c_attn.{p}", tuple(f"{_QWEN2}self_attn.{n}_proj.{{p}}" for n in "qkv"), Parts((1, 1, 1))),
        Row(_QWEN + "attn.c_proj.weight", _QWEN2 + "self_attn.o_proj.weight"),
        Row(_QWEN + "mlp.w1.weight", _QWEN2 + "mlp.up_proj.weight"),
        Row(_QWEN + "mlp.w2.weight", _QWEN2 + "mlp.gate_proj.weight"),
        Row(_QWEN + "mlp.c_proj.weight", _QWEN2 + "mlp.down_proj.weight"),
        Row("transformer.ln_f.weight", "model.norm.weight"),
        Row("lm_head.weight", "lm_head.weight"),
    ],
    "Qwen",
    "Qwen2",
)


def inside(mapping: KeyMapping, prefix: str = "language_model.") -> KeyMapping:
    """A language model's mapping inside a multimodal model; everything else stays as it is."""
    others = [Row("vision_model.{rest}", "vision_model.{rest}"), Row("mlp1.{rest}", "mlp1.{rest}")]
    return KeyMapping([*prefixed(mapping.rows, prefix, prefix), *others], mapping.left, mapping.right)
