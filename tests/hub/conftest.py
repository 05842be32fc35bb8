"""A tokenizer and a tiny chat model for the tests of the hub code."""

import pytest
from transformers import AutoTokenizer

from .cases import make_config, make_model, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "files"
    make_tokenizer(path)
    return path


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture
def model(tokenizer):
    return make_model(make_config(vocab_size=len(tokenizer)))
