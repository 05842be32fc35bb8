"""The tokenizer as training uses it, and the switches around it."""

import copy
import gc
import os
from random import Random

import pytest

from xtuner_plugins.datasets import SettingError
from xtuner_plugins.datasets.text.tokens import TextTokenizer, no_garbage_collection, single_threaded_tokenizer
from xtuner_plugins.toy.tokenizer import build_tokenizer


def test_a_tokenizer_without_image_tokens_is_refused(tmp_path):
    with pytest.raises(SettingError, match="lacks <img>"):
        TextTokenizer.from_pretrained(build_tokenizer(tmp_path / "t"))
    with pytest.raises(SettingError, match="none' can't be loaded"):
        TextTokenizer.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="can't be loaded"):
        TextTokenizer.from_pretrained(tmp_path / "empty")

    with pytest.raises(SettingError, match="mine is a slow tokenizer; add its tokenizer.json"):
        TextTokenizer(object(), "mine")


def test_many_texts_are_counted_as_each_is_tokenized(text_tokenizer):
    signs = [" "] * 8 + [
        *"  \n\r\t\u00a0\u3000\x1c\x85.!'<_-7é\u0301ﬁ中",
        "A",
        "bus",
        "'ll",
        "DON'T",
        "12",
        "<|im_end|>",
    ]
    random = Random(0)
    texts = ["", *("".join(random.choices(signs, k=random.randrange(1, 25))) for _ in range(3000))]
    assert text_tokenizer.count_batch(texts) == [len(text_tokenizer.encode(text)) for text in texts]


def test_control_tokens_are_written_out(text_tokenizer):
    ids = [text_tokenizer.image_start_id, *text_tokenizer.encode("a bus"), text_tokenizer.ids["<|im_end|>"]]
    assert text_tokenizer.decode(ids) == "<img>a bus<|im_end|>" and text_tokenizer.decode([]) == ""


def test_the_fingerprint_changes_with_the_tokens(hf_tokenizer, data_base):
    first, again = TextTokenizer(hf_tokenizer), TextTokenizer.from_pretrained(data_base)
    assert first.fingerprint() == again.fingerprint()
    more = copy.deepcopy(hf_tokenizer)
    more.add_tokens(["<more>"])
    assert TextTokenizer(more).fingerprint() != first.fingerprint()


def test_switches_are_as_before_afterwards(monkeypatch):
    with pytest.raises(ZeroDivisionError), no_garbage_collection():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    for before in (None, "true"):
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        if before is not None:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        with single_threaded_tokenizer():
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
