"""Any model directory in the names of training.

============  ========================================================  ==========================================
format        how it is recognized                                      what differs from the names of training
============  ========================================================  ==========================================
``official``  ``vision_config`` + ``llm_config``                        nothing, but InternLM2 runs as Llama
``hf``        ``InternVLForConditionalGeneration`` (an ``-hf`` folder)  names and config
============  ========================================================  ==========================================

``open_model`` gives config and lazy tensors in our names; ``export/draft.py`` makes a directory of any format of them.
Formats are modules (``export/llava`` is only written, so it lacks the last member)::

    NAME                     for --format
    RELEASE                  of transformers, written into the configs
    PROCESSOR_TOKEN          a token that its processor needs, added after all others; None for none
    KEYS                     names of training <-> its own
    MEDIA                    what stands for an image and a video in its processor's template; None for no processor
    TOKENIZER_FIELDS         further fields of ``tokenizer_config.json``
    write_config(config, tokenizer, num_rows)    config.json from complete official fields; num_rows of embedding, head
    write_processor(stage, config)               the files that describe pixels and prompts
    read_config(fields, directory)               the complete official fields of a directory
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from . import allowed, hf, languages, manifest, official, preprocessing
from .errors import CheckpointError, refusing
from .lazy import LazyTensor
from .mapping import KeyMapping, inside
from .reading import open_weights, read_json


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
        settled: official fields of tile limits and template that a training set otherwise than the directory says.
    """

    directory: Path
    format: ModuleType
    config: dict
    tensors: dict[str, LazyTensor]
    stored_config: dict
    stored_tensors: dict[str, LazyTensor]
    settled: dict = field(default_factory=dict)


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
    found = official if all(isinstance(fields.get(part), dict) for part in ("vision_config", "llm_config")) else hf
    if found is hf and (fields.get("model_type") != "internvl" or "text_config" not in fields):
        told = f"(model_type {fields.get('model_type')!r}, without vision_config and llm_config)"
        remedy = "make one with tools/build_base_model.py, or give the directory that a llava export was made from"
        raise CheckpointError(f"{directory} is not an official InternVL directory {told}; {remedy}")
    fields = allowed.config_fields(fields, f"{directory}/config.json")
    config, path = found.read_config(fields, directory), directory / preprocessing.FILE
    if found is hf and path.is_file():  # template and thumbnail, for which it has no fields
        config.update(preprocessing.Choice.of(read_json(path)["exported"]).config_fields(config))
    allowed.check_values(config, str(directory))
    return found, fields, config


def keys_of(form: ModuleType, fields: dict) -> KeyMapping:
    """Names of training <-> names in a directory of a format with this config.json."""
    other = form is official and official.holds_internlm2(fields)
    return inside(languages.internlm2_keys(fields["llm_config"])) if other else form.KEYS


@refusing
def open_model(directory: str | Path) -> ModelView:
    """Config and lazy tensors of a model directory of any format.

    Raises:
        CheckpointError: no model directory, an unknown format, weights missing.
    """
    found, stored_config, config = open_config(directory)
    stored = open_weights(directory)
    tensors = keys_of(found, stored_config).to_ours(stored)
    return ModelView(Path(directory), found, config, tensors, stored_config, stored)


def stop_ids(view: ModelView) -> list[int]:
    """The tokens at which engines stop that read a directory's ``generation_config.json``."""
    path = view.directory / "generation_config.json"
    return allowed.token_ids(read_json(path, missing={}).get("eos_token_id"), view.config["llm_config"], str(path))


@refusing
def open_language_model(directory: Path) -> tuple[dict, dict[str, LazyTensor]]:
    """Config and tensors of a bare language model, see ``languages``; `CheckpointError` where something is missing."""
    path, held = directory / "config.json", open_weights(directory)
    config = allowed.language_fields(read_json(path), str(path))
    tensors = {name: tensor for name, tensor in held.items() if not name.endswith(languages.BUFFERS)}
    if config.get("model_type") not in languages.LANGUAGES:
        return config, tensors
    read_config, keys = languages.LANGUAGES[config["model_type"]]
    return read_config(config), keys(config).to_ours(tensors)
