"""Text to token ids, with control tokens from the template only.

`<|im_end|>` in the text of a record is tokenized as ten characters, not as the token. The exceptions are the grounding
tokens (`<ref>`, `<box>`, ...), which belong into texts.
"""

import contextlib
import gc
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import SettingError
from ...hub.constants import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, IMAGE_TOKENS
from ...hub.prompts import TextRules
from ...weights.fast_tokenizers import QWEN_PATTERN, load_fast_tokenizer

WORD_START = re.compile("(?= [!-~])(?<=[!-~])")  # before a single space between printable ASCII characters
SHORT, MOST_FREQUENT = 256, 1024  # characters of a text whose ids are remembered; how many are


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch off Python's garbage collector, for code that creates millions of objects without cycles.

    Searching for cycles took a third of the time of measuring lengths.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def single_threaded_tokenizer() -> Iterator[None]:
    """Switch the tokenizer's own threads off: a process that has used them warns at every later fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class TextTokenizer(TextRules):
    """A fast tokenizer under the text rules that training and `chat` share.

    Args:
        tokenizer: a fast tokenizer of transformers with the image tokens in its vocabulary.
        name: its name in errors.

    Attributes:
        image_start_id, image_end_id, image_context_id: ids of `<img>`, `</img>`, `<IMG_CONTEXT>`.
        pad_id: id for padding, which is never attended to and never supervised.

    Raises:
        SettingError: a slow tokenizer, or one without the image tokens.
    """

    def __init__(self, tokenizer, name: str = "the tokenizer"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingError("tokenizer", f"{name} is a slow tokenizer", "add its tokenizer.json")
        self._frequent: dict[str, list[int]] = {}  # ids of the first short texts, which a template repeats
        super().__init__(tokenizer)
        missing = [token for token in IMAGE_TOKENS if token not in self.ids]
        if missing:
            raise SettingError(
                "tokenizer",
                f"{name} lacks {', '.join(missing)}",
                "make a base with tools/build_base_model.py, it adds them",
            )
        self.name = name
        self.image_start_id, self.image_end_id = self.ids[IMAGE_START], self.ids[IMAGE_END]
        self.image_context_id = self.ids[IMAGE_CONTEXT]
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)
        self._tokens = backend.get_added_tokens_decoder()
        self._splits_words = _splits_words(self._plain)
        self.memo: dict = {}  # template texts that `conversation` has split

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "TextTokenizer":
        """Load the tokenizer of a model directory; none of its code runs, nothing is downloaded.

        Raises:
            SettingError: there is no tokenizer, or it can't be used.
        """
        directory = os.fspath(directory)
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

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, never of added tokens; not to be changed."""
        ids = self._frequent.get(text)
        if ids is None:
            ids = super().encode(text)
            if len(text) <= SHORT and len(self._frequent) < MOST_FREQUENT:
                self._frequent[text] = ids
        return ids

    def count_batch(self, texts: list[str]) -> list[int]:
        """The number of ids that `encode` gives for each text; where words are independent, each is tokenized once."""
        texts = [WORD_START.split(text) for text in texts] if self._splits_words else [[text] for text in texts]
        words = list({word for text in texts for word in text})
        counts = dict(zip(words, map(len, self._plain.encode_batch_fast(words, add_special_tokens=False)), strict=True))
        return [sum(map(counts.__getitem__, text)) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens included."""
        names = {index: name for name, index in self.ids.items()}
        out, plain = [], []
        for token in [*ids, None]:
            if token is not None and token not in names:
                plain.append(token)
                continue
            out += [self._plain.decode(plain, skip_special_tokens=False), names.get(token, "")]
            plain = []
        return "".join(out)

    def fingerprint(self) -> str:
        """Everything that decides the ids, as text; its hash is part of cache keys."""
        added = [(int(index), repr(token)) for index, token in sorted(self._tokens.items())]
        return self._plain.to_str() + json.dumps([added, self.start_ids])


def _splits_words(plain) -> bool:
    """Whether the ids of a text are those of its parts between `WORD_START`, as with every Qwen.

    Qwen's pattern matches such a space only at the beginning of a match, and where a match ends before one depends on
    nothing after it. NFC joins no characters across it.
    """
    normalizer, splitter = (
        part and json.loads(part.__getstate__()) for part in (plain.normalizer, plain.pre_tokenizer)
    )
    split, byte_level, *others = [*(splitter or {}).get("pretokenizers", ()), {}, {}]
    return (
        normalizer in (None, {"type": "NFC"})
        and split == {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
        and byte_level.get("type") == "ByteLevel"
        and not (byte_level["add_prefix_space"] or byte_level["use_regex"] or any(others))
    )
