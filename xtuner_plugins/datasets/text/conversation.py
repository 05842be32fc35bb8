"""A conversation as token ids and labels, segment by segment.

    ids     <|im_start|> user \\n <img> <IMG_CONTEXT> x N*T </img> \\n What ? <|im_end|> \\n <|im_start|> assistant
    labels                                  -100 everywhere
    ids     \\n    A bus . <|im_end|>   \\n
    labels -100   A bus . <|im_end|>  -100

Of a preference pair the rejected answer follows the chosen one: prompt, chosen, rejected (`split_pair`).

The ids are those of the whole prompt, as `chat` and engines tokenize it (see `hub/prompts.py`). Neighboring texts that
aren't answers are tokenized together; an answer, learned or not, never shares a token with what stands before it. Image
tokens are written as ids and never go through the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...hub.constants import IGNORE_INDEX
from ..records.pairs import PairRecord
from ..records.records import Record
from .templates import Template
from .tokens import TextTokenizer

PROMPT, CHOSEN, REJECTED = range(3)  # the branches of a pair


class Piece(NamedTuple):
    """A unit of tokenization: a plain text, known ids, or an image (its index)."""

    text: str | None = None  # with what `TextRules.anchors` puts in front
    ids: tuple[int, ...] = ()
    supervised: bool = False
    medium: int | None = None
    branch: int = PROMPT  # of a pair: `PROMPT`, `CHOSEN` or `REJECTED`
    skipped: int = 0  # the text's first ids, which are cut off


@dataclass(frozen=True)
class Encoded:
    """A tokenized conversation."""

    input_ids: np.ndarray  # int64 `[s]`
    labels: np.ndarray  # int64 `[s]`, -100 where nothing is learned
    spans: tuple[tuple[int, int], ...]  # (first, length) of each image's span, `<img>` and `</img>` included, in order
    branches: tuple[int, ...] = ()  # of a pair, the tokens of prompt, chosen and rejected answer


def split_pieces(record: Record, template: Template, tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces of a record in order; neighboring plain texts of the same kind are joined.

    Raises:
        RecordError: the template has no place for something in the record.
    """
    if isinstance(record, PairRecord):
        return split_pair(record, template, tokenizer)
    pieces = [Piece(None, tokenizer.start_ids)] if tokenizer.start_ids else []
    joins, strips, num_media = None, False, 0  # `joins`: the kind of text that the last piece goes on with
    for text, supervised, literal, answer in template.segments(record):
        if not isinstance(text, str):  # an image
            pieces.append(Piece(medium=num_media))
            num_media, strips, joins = num_media + 1, False, None
            continue
        for item in tokenizer.split_literal(text) if literal else tokenizer.split_text(text):
            if isinstance(item, int):
                pieces.append(Piece(None, (item,), supervised))
                strips, joins = tokenizer.strips_right(item), None
            elif item := item.lstrip() if strips and not answer else item:
                if joins == (supervised, answer):  # an answer, learned or not, is joined to nothing else
                    pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + item)
                else:
                    before = "start" if not pieces else "token" if pieces[-1].text is None else "text"
                    anchor, skipped = tokenizer.anchors[before]
                    pieces.append(Piece(anchor + item, (), supervised, skipped=skipped))
                strips, joins = False, (supervised, answer)
    return pieces


def split_pair(pair: PairRecord, template: Template, tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces of the prompt, and of both answers, each with its end; errors as `split_pieces`."""
    chosen, rejected = (split_pieces(side, template, tokenizer) for side in pair.sides())
    start = next(index for index, piece in enumerate(chosen) if piece.supervised)  # the only answer that is learned
    assert chosen[:start] == rejected[:start], "answers share no token with the prompt"
    answers = ((CHOSEN, chosen[start:]), (REJECTED, rejected[start:]))
    return chosen[:start] + [piece._replace(branch=branch) for branch, side in answers for piece in side]


def tokenize(record: Record, template: Template, tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces of a record, with ids in place of texts; errors as `split_pieces`."""
    return [
        piece if piece.text is None else Piece(None, tuple(tokenizer.encode(piece.text)[piece.skipped :]), *piece[2:5])
        for piece in split_pieces(record, template, tokenizer)
    ]


def join_pieces(
    pieces: Sequence[Piece], tokenizer: TextTokenizer, num_tiles: Sequence[int], tokens_per_tile: int
) -> Encoded:
    """Ids and labels of tokenized pieces.

    Args:
        num_tiles: tiles of each of the record's images, thumbnail included, in order.
        tokens_per_tile: N.
    """
    parts, learned, spans, position = [np.zeros(0, np.int64)], [], [], 0
    branches = [0, 0, 0]
    for piece in pieces:
        if piece.medium is None:
            own = np.asarray(piece.ids, np.int64)
        else:
            own = np.full(num_tiles[piece.medium] * tokens_per_tile + 2, tokenizer.image_context_id, np.int64)
            own[0], own[-1] = tokenizer.image_start_id, tokenizer.image_end_id
            spans.append((position, len(own)))
        parts.append(own)
        learned += [slice(position, position + len(own))] if piece.supervised else []
        position += len(own)
        branches[piece.branch] += len(own)
    input_ids = np.concatenate(parts)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    for part in learned:
        labels[part] = input_ids[part]
    return Encoded(input_ids, labels, tuple(spans), tuple(branches) if branches[REJECTED] else ())
