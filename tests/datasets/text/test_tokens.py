"""The tokenizer as training uses it, and the switches around it."""

import copy
import gc
import os

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


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(SettingError, match="mine is a slow tokenizer; add its tokenizer.json"):
        TextTokenizer(object(), "mine")


def test_many_texts_have_the_ids_of_each(text_tokenizer):
    texts = ["A bus.", "", "é <|im_end|> <ref>", "中文 words"]
    assert text_tokenizer.encode_batch(texts) == [text_tokenizer.encode(text) for text in texts]


def test_control_tokens_are_written_out(text_tokenizer):
    ids = [text_tokenizer.image_start_id, *text_tokenizer.encode("a bus"), text_tokenizer.ids["<|im_end|>"]]
    assert text_tokenizer.decode(ids) == "<img>a bus<|im_end|>" and text_tokenizer.decode([]) == ""


def test_the_fingerprint_changes_with_the_tokens(hf_tokenizer, data_base):
    first, again = TextTokenizer(hf_tokenizer), TextTokenizer.from_pretrained(data_base)
    assert first.fingerprint() == again.fingerprint()
    more = copy.deepcopy(hf_tokenizer)
    more.add_tokens(["<more>"])
    assert TextTokenizer(more).fingerprint() != first.fingerprint()


def test_garbage_is_collected_again_afterwards():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_garbage_collection():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("before", [None, "true"])
def test_the_tokenizers_threads_are_as_before_afterwards(monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    with single_threaded_tokenizer():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
