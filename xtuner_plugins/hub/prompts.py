"""Token ids of a prompt, put together as training puts its samples together.

A prompt tokenised as one text differs from what was trained in three places: an answer of an earlier turn was trained
as a model writes it, tokenised on its own (`\\n` and an answer that begins with a line break would become one token);
names of control tokens in a question or an answer are plain characters there, as `<|im_end|>` typed by a user must
not end his turn; only the grounding tokens are tokens in any text::

    template          question            template               answer      template
    <|im_start|>user\\n|<ref>cat</ref>?|<|im_end|>\\n<|im_start|>assistant\\n|  A cat.  |<|im_end|>\\n ...
    ------------------------------------------------------------- | ----------- | ---------------
                    tokenised as one text, tokens cut out               alone

Works with fast and slow tokenizers of every supported release.
"""

from __future__ import annotations

import re

import torch

from .constants import GROUNDING_TOKENS, IMAGE_PLACEHOLDER


def prompt_parts(conversation, num_patches_list):
    """Parts of a conversation, as its `get_parts`, with `("picture", tiles)` in the places of `<image>`.

    Only questions hold pictures: an answer that happens to say `<image>` must not swallow one.

    Args:
        conversation: A `Conversation` whose last turn is open.
        num_patches_list: Tiles of each picture in order; placeholders beyond them stay text.
    """
    counts, parts = iter(num_patches_list), []
    for kind, text in conversation.get_parts():
        said, *others = text.split(IMAGE_PLACEHOLDER) if kind == "question" else [text]
        for piece in others:
            count = next(counts, None)
            if count is None:
                said += IMAGE_PLACEHOLDER + piece
            else:
                parts += [(kind, said), ("picture", count)]
                said = piece
        parts.append((kind, said))
    return parts


def pad_left(rows, pad_token_id):
    """Lists of ids as a matrix [B, S], padded on the left, and its attention mask."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def token_id(tokenizer, token):
    """Id of a token that the tokenizer must have as one piece; `ValueError` otherwise."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no token {token!r}; is it the one that belongs to this model?")
    return found


class PromptEncoder:
    """Makes ids of the parts of a prompt.

    Args:
        tokenizer: The model's tokenizer, fast or slow.
        num_image_token: Image tokens a tile.
        image_tokens: What a picture is written with: start, end and the token of a feature.

    Raises:
        ValueError: The tokenizer lacks one of them.
    """

    def __init__(self, tokenizer, num_image_token, image_tokens):
        self.tokenizer, self.num_image_token = tokenizer, num_image_token
        self.start_id, self.end_id, self.context_id = (token_id(tokenizer, token) for token in image_tokens)
        added = tokenizer.get_added_vocab()
        self._ids = {name: int(number) for name, number in added.items()}
        self._control = _any_of(added)
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        ordinary = {str(token) for token in decoder.values() if str(token)[:1] == "<" and not token.special}
        ordinary = ordinary.union(GROUNDING_TOKENS).difference(image_tokens)
        self._writable = _any_of(name for name in added if name in ordinary)
        # Phi-3's control tokens swallow the white space after them.
        self._strippers = {int(number) for number, token in decoder.items() if getattr(token, "rstrip", False)}
        self._plain = _without_added_tokens(tokenizer)

    def start(self):
        """Ids that the tokenizer puts before a text: its start token, or nothing."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a").input_ids[:1] == [bos] else []

    def plain(self, text):
        """Ids of a text in which nothing is a token of the added ones."""
        if self._plain is not None:
            return self._plain.encode(text, add_special_tokens=False).ids
        tokens = self.tokenizer.tokenize(text, split_special_tokens=True)
        return list(self.tokenizer.convert_tokens_to_ids(tokens))

    def encode(self, parts):
        """Ids of a prompt, start token included.

        Args:
            parts: From `prompt_parts`.
        """
        ids = self.start()
        waiting, waits_as_answer, strips = "", False, False

        def flush():
            nonlocal waiting
            if waiting:
                ids.extend(self.plain(waiting))
            waiting = ""

        for kind, content in parts:
            if kind == "picture":
                flush()
                ids += [self.start_id, *[self.context_id] * (self.num_image_token * content), self.end_id]
                strips = False
                continue
            pattern = self._control if kind == "template" else self._writable
            for number, piece in enumerate(pattern.split(content) if pattern else [content]):
                if number % 2:
                    flush()
                    ids.append(self._ids[piece])
                    strips = self._ids[piece] in self._strippers
                    continue
                if strips and kind != "answer":
                    piece = piece.lstrip()
                if not piece:
                    continue
                strips = False
                if waits_as_answer != (kind == "answer"):
                    flush()
                waiting, waits_as_answer = waiting + piece, kind == "answer"
        flush()
        return ids


def _any_of(names):
    """A pattern that cuts a text at any of the names, the longest first; `None` without names."""
    names = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None


def _without_added_tokens(tokenizer):
    """A fast tokenizer's model, normalizer and splitter without its added tokens; `None` of a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    plain = type(backend)(backend.model)
    for name in ("normalizer", "pre_tokenizer"):
        if getattr(backend, name) is not None:
            setattr(plain, name, getattr(backend, name))
    return plain
