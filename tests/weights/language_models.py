"""Tiny language models for the tests: with the toy tokenizer, or with a vocabulary of the kind that they come with."""

from tests.weights.vocabularies import toy_ranks, write_internlm2, write_qwen
from xtuner_plugins.toy import language_models
from xtuner_plugins.toy.language_models import SIZES  # noqa: F401


def write_llm(family, folder, tokenizer_dir, *, own_vocabulary=False):
    """As `xtuner_plugins.toy.language_models.write_llm`; InternLM2 and Qwen may have their own kind of tokenizer."""
    own = {"internlm2": write_internlm2, "qwen": lambda at: write_qwen(at, toy_ranks(tokenizer_dir))}
    write = own[family] if own_vocabulary else None
    return language_models.write_llm(family, folder, tokenizer_dir, write_vocabulary=write)
