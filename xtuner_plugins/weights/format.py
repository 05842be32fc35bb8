"""Formats of model directories: modules with the same members, and rows for language models.

``official``, ``hf`` and ``export/llava`` (only written) have::

    NAME                     for --format
    PROCESSOR_TOKEN          a token that its processor needs, added after all others; None for none
    keys(fields)             names of training <-> names in a directory with this config.json; None if they are equal
    write_config(config, tokenizer, num_rows)    config.json from complete official fields; num_rows of embedding, head
    chat_template(tokenizer, conversation)       the Jinja template that prompts as training does
    write_files(stage, config, tokenizer)        everything but weights, config.json and code
    detect(fields)                       whether a config.json is of this format
    read_config(fields, directory)       the complete official fields of such a directory

The last two are lacking where a format is only written. ``CheckpointError`` says what a format can't express.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .mapping import KeyMapping


@dataclass(frozen=True)
class LanguageFormat:
    """A language model of a class that transformers lacks, run as a class of transformers that computes the same.

    It comes in a directory of its own; InternLM2 also comes inside official directories.

    Attributes:
        model_type: `model_type` in its config.
        title: its name in messages.
        read_config: converts its config to that of the other class.
        keys: makes the mapping of names (without prefix) from its config.
        code: code files that an official directory needs to run it.
        buffers: endings of stored names that aren't weights.
    """

    model_type: str
    title: str
    read_config: Callable[[Mapping], dict]
    keys: Callable[[Mapping], KeyMapping]
    code: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
