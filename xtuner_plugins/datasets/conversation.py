"""A conversation as token ids and labels, segment by segment.

    ids     <|im_start|> user \\n <img> <IMG_CONTEXT> x N*T </img> \\n What ? <|im_end|> \\n <|im_start|> assistant
    labels                                  -100 everywhere
    ids     \\n    A bus . <|im_end|>   \\n
    labels -100   A bus . <|im_end|>  -100

Neighbouring texts that aren't supervised are tokenised together, as `chat` will tokenise the prompt; an answer is
always tokenised on its own, as a model writes it. Image tokens are written as numbers and never go through the
tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .records import Record
from .templates import Template
from .tokens import TextTokenizer

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Piece:
    """What can be tokenised at once: a plain text, ids that are known already, or a picture (by number)."""

    text: str | None = None
    ids: tuple[int, ...] = ()
    supervised: bool = False
    medium: int | None = None


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        input_ids: int64 `[s]`.
        labels: int64 `[s]`, -100 where nothing is learned.
        spans: (first, length) of each picture's span, `<img>` and `</img>` included, in order.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def split_pieces(record: Record, template: Template, tokenizer: TextTokenizer) -> list[Piece]:
    """Everything of a record in order, with neighbouring plain texts of one kind joined.

    Raises:
        RecordError: the template has no place for something in the record.
    """
    pieces: list[Piece] = []
    strip_next, num_media = False, 0
    for segment in template.segments(record):
        if segment.medium is not None:
            pieces.append(Piece(medium=num_media))
            num_media, strip_next = num_media + 1, False
            continue
        split = tokenizer.split_literal if segment.literal else tokenizer.split_text
        for item in split(segment.text):
            if isinstance(item, int):
                pieces.append(Piece(ids=(item,), supervised=segment.supervised))
                strip_next = tokenizer.strips_right(item)
                continue
            if strip_next and not segment.supervised:
                item = item.lstrip()
                if not item:
                    continue
            strip_next = False
            last = pieces[-1] if pieces else None
            if last is not None and last.text is not None and last.supervised == segment.supervised:
                pieces[-1] = Piece(text=last.text + item, supervised=segment.supervised)
            else:
                pieces.append(Piece(text=item, supervised=segment.supervised))
    return pieces


def encode(
    record: Record,
    template: Template,
    tokenizer: TextTokenizer,
    num_tiles: Sequence[int] = (),
    tokens_per_tile: int = 256,
) -> Encoded:
    """Tokenise a conversation.

    Args:
        num_tiles: tiles of each of the record's pictures, thumbnail included, in order.
        tokens_per_tile: N.

    Raises:
        RecordError: the template has no place for something in the record.
    """
    pieces = tokenize_pieces(split_pieces(record, template, tokenizer), tokenizer)
    return join_pieces(pieces, tokenizer, num_tiles, tokens_per_tile)


def tokenize_pieces(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces with ids in place of texts."""
    return [
        piece if piece.text is None else Piece(ids=tuple(tokenizer.encode(piece.text)), supervised=piece.supervised)
        for piece in pieces
    ]


def join_pieces(
    pieces: Sequence[Piece], tokenizer: TextTokenizer, num_tiles: Sequence[int], tokens_per_tile: int
) -> Encoded:
    """Ids and labels of tokenised pieces (see `encode`)."""
    parts, supervised, spans, position = [], [], [], 0
    for piece in pieces:
        if piece.medium is not None:
            ids = image_span(num_tiles[piece.medium] * tokens_per_tile, tokenizer)
            spans.append((position, len(ids)))
        else:
            ids = piece.ids
        parts.append(ids)
        if piece.supervised:
            supervised.append((position, position + len(ids)))
        position += len(ids)
    input_ids = np.concatenate([np.asarray(part, np.int64) for part in parts]) if parts else np.zeros(0, np.int64)
    labels = np.full(position, IGNORE_INDEX, np.int64)
    for first, last in supervised:
        labels[first:last] = input_ids[first:last]
    return Encoded(input_ids, labels, tuple(spans))


def image_span(num_image_tokens: int, tokenizer: TextTokenizer) -> np.ndarray:
    """`<img>`, the image tokens, `</img>`."""
    span = np.full(num_image_tokens + 2, tokenizer.image_context_id, np.int64)
    span[0], span[-1] = tokenizer.image_start_id, tokenizer.image_end_id
    return span
