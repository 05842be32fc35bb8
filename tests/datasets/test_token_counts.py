"""The fast count equals the tokenizer's own, and is given up when it doesn't."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtuner_plugins.datasets import token_counts
from xtuner_plugins.datasets.token_counts import TokenCounter

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["It's 1234.\n\n", "e\u0301a", "的图片", "  x  ", "<|im_end|>", "what colour is the\r\n"]),
    min_size=1,
    max_size=90,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_counts_equal_the_tokenizers(texts, text_tokenizer):
    counter = TokenCounter(text_tokenizer)
    assert counter.fast is not None
    assert [len(ids) for ids in counter._encode(texts)] == [len(text_tokenizer.encode(text)) for text in texts]


def test_one_difference_turns_the_fast_way_off(text_tokenizer):
    counter = TokenCounter(text_tokenizer)
    texts = [f"what is number {number}" for number in range(200)]
    right = [len(text_tokenizer.encode(text)) for text in texts]
    assert counter.count(texts) == right and counter.fast is not None
    counter._encode = lambda texts: [[0]] * len(texts)
    assert counter.count(texts) == right and counter.fast is None


def test_other_tokenizers_are_left_alone():
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers

    for pre in (pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(), None):
        tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
        if pre is not None:
            tokenizer.pre_tokenizer = pre
        assert token_counts._tiktoken_encoding(json.loads(tokenizer.to_str())) == (None, "")
