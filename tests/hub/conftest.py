"""A tokenizer and a tiny chat model for the tests of the hub code."""

import pytest
from transformers import AutoTokenizer

from .cases import make_config, make_model


@pytest.fixture
def tokenizer(toy_base):
    return AutoTokenizer.from_pretrained(toy_base)


@pytest.fixture
def model(tokenizer):
    return make_model(make_config(vocab_size=len(tokenizer)))
