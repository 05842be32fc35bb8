"""Token ids of a prompt, made as training makes those of its samples.

They are those of the whole prompt, tokenized by the model's own tokenizer with its start token in front, as serving
engines do, with two exceptions: an answer never becomes one token with what stands before it, since a model writes it
after the prompt's last token; and names of control tokens in a question or an answer are plain characters (`<|im_end|>`
typed by a user must not end the turn), those of the grounding tokens apart.

::

    template          question            template               answer      template
    <|im_start|>user\\n|<ref>cat</ref>?|<|im_end|>\\n<|im_start|>assistant\\n|  A cat.  |<|im_end|>\\n ...
    ------------------------------------------------------------- | ----------- | ---------------
                    tokenized as one text, tokens cut out          its continuation

Some tokenizers write a space before a text: at the start of the whole text only (`first` of SentencePiece), or after
every control token, too (`always`). They never write one inside a text, so an answer after `assistant\\n` gets none.

Works with fast and slow tokenizers of every supported release.
"""

import re

import torch

from .constants import GROUNDING_TOKENS, IMAGE_PLACEHOLDER, IMAGE_TOKENS

_ANCHOR = "\x01"  # stands for the text before; no vocabulary of SentencePiece merges it with what follows


def prompt_parts(conversation, num_patches_list):
    """Parts of a `Conversation` as from `get_parts`, with `("image", tiles)` in place of each `<image>` of a question.

    `num_patches_list` has the tiles of each image in order; placeholders beyond them stay text, as do those in answers.
    """
    counts, parts = iter(num_patches_list), []
    for kind, text in conversation.get_parts():
        said, *others = text.split(IMAGE_PLACEHOLDER) if kind == "question" else [text]
        for piece in others:
            count = next(counts, None)
            if count is None:
                said += IMAGE_PLACEHOLDER + piece
            else:
                parts += [(kind, said), ("image", count)]
                said = piece
        parts.append((kind, said))
    return parts


def left_padded(rows, value=0):
    """Rows [S, ...] of several lengths as [B, S, ...], padded on the left by a value."""
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row.new_full((longest - len(row), *row.shape[1:]), value), row]) for row in rows])


def token_id(tokenizer, token):
    """Id of a token that the tokenizer must have as one piece; `ValueError` otherwise."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no token {token!r}; is it the one that belongs to this model?")
    return found


class TextRules:
    """How texts become tokens, the same in training and in `chat`.

    A template may write every added token. A text may write only the grounding tokens and those added tokens that begin
    with `<` and aren't special in the tokenizer (Qwen3's `<think>`); names of others stay characters.

    Args:
        tokenizer: A tokenizer of transformers, fast or slow.

    Attributes:
        ids: Name to id of each added token.
        start_ids: Ids that the tokenizer puts before a text (`<s>` of Llama and InternLM2); may be empty.
        anchors: For what stands before a text (`start`: nothing, `token`: a control token or an image, `text`) the
            characters that are encoded in front of it so that it gets the ids that it has there, and the number of
            their ids, which are cut off. None where the tokenizer itself writes the text's ids.
    """

    def __init__(self, tokenizer):
        self._tokenizer, self._plain = tokenizer, _without_added_tokens(tokenizer)
        self.ids = {name: int(index) for name, index in tokenizer.get_added_vocab().items()}
        bos = tokenizer.bos_token_id
        self.start_ids = (int(bos),) if bos is not None and tokenizer("a").input_ids[:1] == [bos] else ()
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        ordinary = {str(token) for token in decoder.values() if str(token)[:1] == "<" and not token.special}
        writable = ordinary.union(GROUNDING_TOKENS).difference(IMAGE_TOKENS)
        self._any, self._writable = _any_of(self.ids), _any_of(name for name in self.ids if name in writable)
        self._strippers = {int(index) for index, token in decoder.items() if getattr(token, "rstrip", False)}
        none, anchor = ("", 0), (_ANCHOR, len(self.encode(_ANCHOR)))
        alone, continued = self.encode("a"), self.encode(_ANCHOR + "a")
        after_token = list(tokenizer(IMAGE_TOKENS[0] + "a", add_special_tokens=False).input_ids)[1:]
        self.anchors = {
            "start": none,
            "token": none if after_token == alone else anchor,
            "text": none if continued[anchor[1] :] == alone else anchor,
        }

    def split_literal(self, text):
        """A template's text as ids of control tokens and the plain texts between them."""
        return self._split(text, self._any)

    def split_text(self, text):
        """A user's text or an answer as ids of the tokens that texts may write and the plain texts between."""
        if "<" not in text:  # every writable token begins with it
            return [text] if text else []
        return self._split(text, self._writable)

    def strips_right(self, token_id):
        """Whether this token removes the white space after it, as Phi-3's control tokens do."""
        return token_id in self._strippers

    def encode(self, text):
        """Ids of a plain text, never of added tokens."""
        if self._plain is not None:
            return self._plain.encode(text, add_special_tokens=False).ids
        tokens = self._tokenizer.tokenize(text, split_special_tokens=True)
        return list(self._tokenizer.convert_tokens_to_ids(tokens))

    def encode_after(self, before, text):
        """Ids of a plain text after `before`, a key of `anchors`."""
        anchor, skipped = self.anchors[before]
        return self.encode(anchor + text)[skipped:]

    def _split(self, text, pattern):
        pieces = pattern.split(text) if pattern else [text]
        return [self.ids[piece] if index % 2 else piece for index, piece in enumerate(pieces) if piece]


class PromptEncoder:
    """Makes ids of the parts of a prompt.

    Args:
        tokenizer: The model's tokenizer, fast or slow.
        num_image_token: Image tokens per tile.

    Raises:
        ValueError: The tokenizer lacks one of `IMAGE_TOKENS`.
    """

    def __init__(self, tokenizer, num_image_token):
        self.start_id, self.end_id, self.context_id = (token_id(tokenizer, token) for token in IMAGE_TOKENS)
        self.num_image_token, self.rules = num_image_token, TextRules(tokenizer)

    def encode(self, parts):
        """Ids of a prompt of `prompt_parts`, start token included."""
        ids = list(self.rules.start_ids)
        before = "token" if ids else "start"
        waiting, waits_as_answer, strips = "", False, False

        def flush():
            nonlocal waiting, before
            if waiting:
                ids.extend(self.rules.encode_after(before, waiting))
                before = "text"
            waiting = ""

        for kind, content in parts:
            if kind == "image":
                flush()
                ids += [self.start_id, *[self.context_id] * (self.num_image_token * content), self.end_id]
                before, strips = "token", False
                continue
            for piece in (self.rules.split_literal if kind == "template" else self.rules.split_text)(content):
                if isinstance(piece, int):
                    flush()
                    ids.append(piece)
                    before, strips = "token", self.rules.strips_right(piece)
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
    """A fast tokenizer's parts without its added tokens; `None` for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    plain = type(backend)(backend.model)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, name) is not None:
            setattr(plain, name, getattr(backend, name))
    return plain
