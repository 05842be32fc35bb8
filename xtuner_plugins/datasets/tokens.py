"""Text to token ids, with the line between a template's control tokens and a record's characters.

`<|im_end|>` in a user's text is eight characters about a token, not the token; only the template may write control
tokens. The exception are the grounding tokens (`<ref>`, `<box>`, ...), which are meant to stand in texts.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from xtuner_plugins.fast_tokenizers import load_fast_tokenizer
from xtuner_plugins.hub.constants import GROUNDING_TOKENS, IMAGE_CONTEXT, IMAGE_END, IMAGE_START, IMAGE_TOKENS

from .errors import SettingError


@contextlib.contextmanager
def single_threaded_tokenizer() -> Iterator[None]:
    """Keep the tokenizer's own threads out: a process that has used them warns at every later fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class TextTokenizer:
    """Encodes plain text as plain text, literals with their control tokens.

    Args:
        tokenizer: a fast tokenizer of transformers with the image tokens in its vocabulary.
        name: what to call it in errors.

    Attributes:
        image_start_id, image_end_id, image_context_id: ids of `<img>`, `</img>`, `<IMG_CONTEXT>`.
        start_ids: what the tokenizer puts before a text (`<s>` of Llama and InternLM2), or nothing; never supervised.
        pad_id: id for padding (never attended to, never supervised).

    Raises:
        SettingError: a slow tokenizer, or one without the image tokens.
    """

    def __init__(self, tokenizer, name: str = "the tokenizer"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingError("tokenizer", f"{name} is a slow tokenizer", "add its tokenizer.json")
        self._added = {
            token.content: (int(number), token) for number, token in backend.get_added_tokens_decoder().items()
        }
        # Without added tokens nothing in a text can become one; model, normalizer and splitter are the same objects.
        self._plain = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            if getattr(backend, part) is not None:
                setattr(self._plain, part, getattr(backend, part))
        missing = [token for token in IMAGE_TOKENS if token not in self._added]
        if missing:
            raise SettingError(
                "tokenizer",
                f"{name} lacks {', '.join(missing)}",
                "make a base with tools/build_base_model.py, it adds them",
            )
        self.name = name
        self.image_start_id = self.token_id(IMAGE_START)
        self.image_end_id = self.token_id(IMAGE_END)
        self.image_context_id = self.token_id(IMAGE_CONTEXT)
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)
        bos = tokenizer.bos_token_id
        starts = bos is not None and tokenizer("a").input_ids[:1] == [bos]
        self.start_ids = (int(bos),) if starts else ()
        self._control = _alternatives(self._added)
        self._writable = _alternatives([name for name, (_, token) in self._added.items() if _is_writable(name, token)])
        self._strippers = {number for number, token in self._added.values() if token.rstrip}
        self._literals: dict[str, list[str | int]] = {}
        self.memo: dict = {}  # what `conversation` has made of a template's texts with this tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "TextTokenizer":
        """Load the tokenizer of a model directory; no code from it runs, nothing is downloaded.

        Raises:
            SettingError: no such directory, no tokenizer in it, or one that can't be used.
        """
        directory = os.fspath(directory)
        if not os.path.isdir(directory):
            raise SettingError(
                "base",
                f"model directory {directory!r} isn't there",
                "build it with tools/build_base_model.py or correct 'base'",
            )
        try:
            tokenizer = load_fast_tokenizer(directory)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise SettingError(
                "tokenizer",
                f"the tokenizer in {directory!r} can't be loaded ({text})",
                "the directory needs tokenizer.json and tokenizer_config.json",
            ) from None
        return cls(tokenizer, str(Path(directory)))

    def has_token(self, token: str) -> bool:
        """Whether this is an added token."""
        return token in self._added

    def token_id(self, token: str) -> int:
        """Id of an added token, by its exact text."""
        return self._added[token][0]

    def split_literal(self, text: str) -> list[str | int]:
        """A template's text as ids of control tokens and the plain texts between them."""
        if text not in self._literals:
            self._literals[text] = [piece for piece in self._split(text, self._control) if piece != ""]
        return self._literals[text]

    def split_text(self, text: str) -> list[str | int]:
        """A record's text as ids of the tokens that anybody may write and the plain texts between them."""
        if "<" not in text:
            return [text] if text else []
        return [piece for piece in self._split(text, self._writable) if piece != ""]

    def strips_right(self, token_id: int) -> bool:
        """Whether this control token swallows the white space after it (Phi-3's do), as `chat` will see it."""
        return token_id in self._strippers

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; no control token can come out of it."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """As `encode`, for many texts at once, over the tokenizer's own threads."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def normalize(self, text: str) -> str:
        """A text in the form that the tokenizer splits."""
        return text if self._plain.normalizer is None else self._plain.normalizer.normalize_str(text)

    def plain_state(self) -> str:
        """The tokenizer without its added tokens, as JSON."""
        return self._plain.to_str()

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens written out."""
        names = {number: content for content, (number, _) in self._added.items()}
        out, plain = [], []
        for token in [*ids, None]:
            if token is not None and token not in names:
                plain.append(token)
                continue
            out += [self._plain.decode(plain, skip_special_tokens=False), names.get(token, "")]
            plain = []
        return "".join(out)

    def fingerprint(self) -> str:
        """What decides the ids, as text: caches are keyed by its hash."""
        added = [(number, repr(token)) for number, token in sorted(self._added.values(), key=lambda item: item[0])]
        return self._plain.to_str() + json.dumps([added, self.start_ids])

    def _split(self, text: str, pattern: re.Pattern | None) -> list[str | int]:
        if pattern is None:
            return [text]
        pieces = pattern.split(text)
        return [self.token_id(piece) if number % 2 else piece for number, piece in enumerate(pieces)]


def _is_writable(name: str, token) -> bool:
    """Grounding tokens, and added ones that their tokenizer doesn't call special (Qwen3's `<think>`); the others only
    stand where a template puts them. What doesn't begin with `<` is never looked for."""
    if name in IMAGE_TOKENS:
        return False
    return name in GROUNDING_TOKENS or (name.startswith("<") and not token.special)


def _alternatives(tokens) -> re.Pattern | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
