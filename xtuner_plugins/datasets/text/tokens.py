"""Text to token ids, with control tokens from the template only.

`<|im_end|>` in the text of a record is tokenized as ten characters, not as the token. The exceptions are the grounding
tokens (`<ref>`, `<box>`, ...), which belong into texts.
"""

import json
import os

from ...errors import SettingError, one_line
from ...hub.constants import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, IMAGE_TOKENS
from ...hub.prompts import TextRules
from ...weights.fast_tokenizers import load_fast_tokenizer


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
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise SettingError("tokenizer", f"{name} is a slow tokenizer", "add its tokenizer.json")
        # Its own threads don't survive a fork: a worker would wait for them for ever. XTuner switches them on.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        super().__init__(tokenizer)
        missing = [token for token in IMAGE_TOKENS if token not in self.ids]
        if missing:
            remedy = "make a base with tools/build_base_model.py, it adds them"
            raise SettingError("tokenizer", f"{name} lacks {', '.join(missing)}", remedy)
        self.image_start_id, self.image_end_id = self.ids[IMAGE_START], self.ids[IMAGE_END]
        self.image_context_id = self.ids[IMAGE_CONTEXT]
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id = next(int(each) for each in pads if each is not None)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "TextTokenizer":
        """Load the tokenizer of a model directory, running none of its code; `SettingError` where it can't be used."""
        directory = os.fspath(directory)
        try:
            return cls(load_fast_tokenizer(directory), directory)
        except SettingError:
            raise
        except Exception as error:
            problem = f"the tokenizer in {directory!r} can't be loaded ({one_line(error, 300)})"
            remedy = "the directory needs tokenizer.json and tokenizer_config.json"
            raise SettingError("tokenizer", problem, remedy) from None

    def count_batch(self, texts: list[str]) -> list[int]:
        """The number of ids that `encode` gives for each text."""
        return list(map(len, self._plain.encode_batch_fast(texts, add_special_tokens=False)))

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens included."""
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def fingerprint(self) -> str:
        """Everything that decides the ids, as text; its hash is part of cache keys."""
        tokens = self._tokenizer.backend_tokenizer.get_added_tokens_decoder()
        added = [(int(index), repr(token)) for index, token in sorted(tokens.items())]
        return self._plain.to_str() + json.dumps([added, self.start_ids])
