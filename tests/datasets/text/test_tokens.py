"""The tokenizer as training uses it, and the switches around it."""

import copy
import gc
import os
from random import Random

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from xtuner_plugins.datasets import SettingError
from xtuner_plugins.datasets.text.tokens import TextTokenizer, no_garbage_collection, single_threaded_tokenizer
from xtuner_plugins.toy.tokenizer import build_tokenizer
from xtuner_plugins.weights.fast_tokenizers import QWEN_PATTERN


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


@pytest.mark.parametrize("form", ["NFC", "NFKD"])
def test_many_texts_are_counted_as_each_is_tokenized(hf_tokenizer, form):
    """Word by word with Qwen's rules, whole with any others: texts of all that spaces and words may stand beside."""
    hf_tokenizer = copy.deepcopy(hf_tokenizer)
    hf_tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
    tokenizer = TextTokenizer(hf_tokenizer)
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
    assert tokenizer.count_batch(texts) == [len(tokenizer.encode(text)) for text in texts]


def test_words_are_counted_once_with_rules_of_qwen_alone(hf_tokenizer):
    def splits(normalizer=None, pre_tokenizer=None):
        changed = copy.deepcopy(hf_tokenizer)
        backend = changed.backend_tokenizer
        backend.normalizer = normalizer
        backend.pre_tokenizer = pre_tokenizer or backend.pre_tokenizer
        return TextTokenizer(changed)._splits_words

    def rules(pattern, **options):
        byte_level = pre_tokenizers.ByteLevel(**({"add_prefix_space": False, "use_regex": False} | options))
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])

    assert splits() and splits(normalizers.NFC()) and splits(None, rules(QWEN_PATTERN))
    assert not splits(normalizers.Lowercase())
    assert not splits(None, rules(QWEN_PATTERN + "|x y"))
    assert not splits(None, rules(QWEN_PATTERN, add_prefix_space=True))
    assert not splits(None, rules(QWEN_PATTERN, use_regex=True))
    assert not splits(None, pre_tokenizers.Whitespace())
    more = pre_tokenizers.Sequence([*rules(QWEN_PATTERN), pre_tokenizers.Digits()])
    assert not splits(None, more)


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
