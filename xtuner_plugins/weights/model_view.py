"""Any model directory in the names of training.

============  ========================================================  ==========================================
format        how it is recognized                                      what differs from the names of training
============  ========================================================  ==========================================
``official``  ``vision_config`` + ``llm_config``                        nothing, but InternLM2 runs as Llama
``hf``        ``InternVLForConditionalGeneration`` (an ``-hf`` folder)  names and config
============  ========================================================  ==========================================

``open_model`` gives config and lazy tensors in our names; ``export/draft.py`` makes a directory of any format of them.
Formats are modules (``export/llava`` is only written, so it lacks the last two members)::

    NAME                     for --format
    PROCESSOR_TOKEN          a token that its processor needs, added after all others; None for none
    keys(fields)             names of training <-> names in a directory with this config.json; None if they are equal
    write_config(config, tokenizer, num_rows)    config.json from complete official fields; num_rows of embedding, head
    chat_template(tokenizer, conversation)       the Jinja template that prompts as training does
    write_files(stage, config, tokenizer)        everything but weights, config.json and code
    detect(fields)                       whether a config.json is of this format
    read_config(fields, directory)       the complete official fields of such a directory

``internlm2`` and ``qwen1``, language models that run as another class of transformers, have ``read_config(config)``,
``keys(config)`` and ``BUFFERS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from . import allowed, hf, internlm2, manifest, official, preprocessing, qwen1
from .errors import CheckpointError, refusing
from .lazy import LazyTensor
from .reading import open_weights, read_json

_LANGUAGE_FORMATS = {"internlm2": internlm2, "qwen": qwen1}


@dataclass
class ModelView:
    """A model directory in our names.

    Attributes:
        directory: its path.
        format: one of those that are read.
        config: fields of an official ``config.json``, complete.
        tensors: our names to lazy tensors.
        stored_config: ``config.json`` as stored.
        stored_tensors: the directory's own names.
        settled: official fields that a training laid over the config: its tile limits and template.
        changed: those of them that differ from what the directory says.
    """

    directory: Path
    format: ModuleType
    config: dict
    tensors: dict[str, LazyTensor]
    stored_config: dict
    stored_tensors: dict[str, LazyTensor]
    settled: dict = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)


@refusing
def open_config(directory: str | Path) -> tuple[ModuleType, dict, dict]:
    """Format, ``config.json`` as stored, and the same as complete official fields, of a model directory.

    Raises:
        CheckpointError: no such directory, without a config, of no known format, with values that no model has, or
            changed since its export.
        UnknownFamilyError: an encoder or a language model without a row in ``families``.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        what = "is not a model directory: it has no config.json" if directory.is_dir() else "does not exist"
        raise CheckpointError(f"model directory {directory} {what}")
    manifest.check(directory, weights=False)
    fields = read_json(directory / "config.json")
    found = next((each for each in (official, hf) if each.detect(fields)), None)
    if found is None:
        raise CheckpointError(
            f"{directory} is not an official InternVL directory (model_type {fields.get('model_type')!r}, without "
            "vision_config and llm_config); make one with tools/build_base_model.py. A llava export is read by other "
            "programs only; give the directory that it was made from"
        )
    fields = allowed.config_fields(fields, f"{directory}/config.json")
    config, path = found.read_config(fields, directory), directory / preprocessing.FILE
    if found is not official and path.is_file():  # template and thumbnail, for which other formats have no fields
        config.update(preprocessing.exported(read_json(path), str(path)).config_fields(config))
    return found, fields, config


@refusing
def open_model(directory: str | Path) -> ModelView:
    """Config and lazy tensors of a model directory of any format.

    Raises:
        CheckpointError: no model directory, an unknown format, weights missing.
    """
    found, stored_config, config = open_config(directory)
    stored, keys = open_weights(directory), found.keys(stored_config)
    tensors = keys.to_ours(stored) if keys else dict(stored)
    return ModelView(Path(directory), found, config, tensors, stored_config, stored)


@refusing
def open_language_model(directory: Path) -> tuple[dict, dict[str, LazyTensor]]:
    """Config and tensors of a bare language model; InternLM2 as Llama, Qwen as Qwen2.

    Raises:
        CheckpointError: no config, weights missing.
    """
    path = directory / "config.json"
    config, tensors = allowed.language_fields(read_json(path), str(path)), open_weights(directory)
    other = _LANGUAGE_FORMATS.get(config.get("model_type"))
    if other is None:
        return config, tensors
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(other.BUFFERS)}
    return other.read_config(config), other.keys(config).to_ours(kept)
