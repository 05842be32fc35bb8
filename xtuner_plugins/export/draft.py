"""A model directory about to be written: names and order of the tensors, the config, and the files beside them."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .. import hub
from ..families import EMBEDDING, HEAD
from ..hub.conversation import TEMPLATES, get_conv_template
from ..weights import allowed, hf, languages, official, tokenizer_files
from ..weights.lazy import Joined, LazyTensor, MemoryTensor
from ..weights.model_view import ModelView, keys_of, stop_ids
from ..weights.reading import CheckpointError, read_json
from ..weights.writer import write_json
from . import llava

FORMATS: dict[str, ModuleType] = {module.NAME: module for module in (official, hf, llava)}
_GENERATION = "generation_config.json"
# Files of a model directory that an export copies, besides weights, config and code.
_KEPT_FILES = {*allowed.FILES, *tokenizer_files.FILES}


@dataclass
class Draft:
    """A model about to be written.

    Attributes:
        tensors: by their names on disk, in order.
        config: ``config.json``.
        write_files: writes everything but weights and config into a directory.
        format: of the directory.
        foreign_code: whether the base's own Python files go along, as InternLM2 needs them.
    """

    tensors: dict[str, LazyTensor]
    config: dict
    write_files: Callable[[Path], None]
    format: ModuleType
    foreign_code: bool = False


def make_draft(
    view: ModelView, tensors: Mapping[str, LazyTensor], *, format: str | None, dtype: str | None, template=None
) -> Draft:
    """The draft of a directory of some format.

    Args:
        view: the directory that the model comes from.
        tensors: the model's tensors under our names.
        format: a key of ``FORMATS``; None keeps the directory's.
        dtype: written into the config; None leaves it.
        template: conversation template of an official directory made from another format; None takes the view's.

    Raises:
        CheckpointError: the format can't express this model.
    """
    to = FORMATS[format] if format else view.format
    # The hf form describes preprocessing in several files, which are rewritten if the training changed it.
    is_new = to is not view.format or (to is not official and view.settled)
    draft = _rewritten(view, tensors, to, template) if is_new else _as_stored(view, tensors)
    for fields in (draft.config, *draft.config.values()) if dtype else ():
        if isinstance(fields, dict) and "model_type" in fields:  # the whole, and its parts
            fields["torch_dtype"] = dtype
            fields.pop("dtype", None)
    return draft


def _as_stored(view: ModelView, tensors: Mapping[str, LazyTensor]) -> Draft:
    """The directory's own names and config, with our code; InternLM2 with its own."""
    config, is_official = copy.deepcopy(view.stored_config), view.format is official
    if other := is_official and official.holds_internlm2(config):
        _check_code(config, view.directory)
    if is_official:
        config |= view.settled | ({} if other else {"auto_map": dict(official.AUTO_MAP)})
    keys = keys_of(view.format, view.stored_config)
    tensors = keys.to_theirs(tensors)

    def write_files(stage: Path) -> None:
        code = view.directory.glob("*.py") if other else hub_code() if is_official else ()
        for path in filter(Path.is_file, (*(view.directory / name for name in _KEPT_FILES), *code)):
            if path.name in allowed.FILES:
                write_json(stage / path.name, allowed.file_fields(path.name, read_json(path), str(path)))
            else:
                shutil.copyfile(path, stage / path.name)
        if view.config["template"] in TEMPLATES:  # a published model that is only converted may have another one
            tokenizer = tokenizer_files.load_tokenizer(view.directory)
            tokenizer_files.write_template(tokenizer, stage, view.config, view.format.MEDIA)
        if stops := exported_stops(view):
            generation = read_json(stage / _GENERATION, missing={"_from_model_config": True})
            write_json(stage / _GENERATION, {**generation, "eos_token_id": stops})

    listed = {name: tensors[name] for name in map(keys.listed, view.stored_tensors)}
    return Draft(listed, config, write_files, view.format, foreign_code=other)


def exported_stops(view: ModelView) -> list[int]:
    """Ids of the tokens at which an export stops: the template's, then those that the directory names."""
    named = stop_ids(view)
    if view.config["template"] not in TEMPLATES:  # a published model that is only converted
        return named
    tokenizer = tokenizer_files.load_tokenizer(view.directory)
    stop = tokenizer_files.token_id(tokenizer, get_conv_template(view.config["template"]).stop_token)
    return named if stop in (None, *named) else [stop, *named]


def with_template(config: Mapping, template: str | None) -> dict:
    """Official fields with another conversation template, and then with its system message; None changes nothing."""
    if template in (None, config["template"]):
        return dict(config)
    return {**{key: value for key, value in config.items() if "system_message" not in key}, "template": template}


def _rewritten(view: ModelView, tensors: Mapping[str, LazyTensor], to: ModuleType, template: str | None) -> Draft:
    """Names, config and files of a format; embedding and head get a row for each token of its tokenizer."""
    config = with_template(view.config, template)
    tokenizer = tokenizer_files.load_tokenizer(view.directory)
    rows = config["llm_config"]["vocab_size"]
    dropped = view.format.PROCESSOR_TOKEN if to is not view.format else None
    if tokenizer_files.token_id(tokenizer, dropped) == rows - 1:
        rows -= 1
    if to.PROCESSOR_TOKEN:
        if tokenizer_files.token_id(tokenizer, to.PROCESSOR_TOKEN) is None:
            tokenizer_files.add_tokens(tokenizer, [to.PROCESSOR_TOKEN])
        rows = max(rows, tokenizer_files.num_token_rows(tokenizer))
    fields = to.write_config(config, tokenizer, rows)
    resized = {f"language_model.{name}" for name in (EMBEDDING, HEAD)}
    tensors = {name: _with_rows(tensor, rows) if name in resized else tensor for name, tensor in tensors.items()}

    def write(stage: Path) -> None:
        write_files(to, stage, config, tokenizer)
        if dropped:
            tokenizer_files.drop_last_token(stage, dropped)

    return Draft(to.KEYS.to_theirs(tensors), fields, write, to)


def write_files(form: ModuleType, stage: Path, config: Mapping, tokenizer) -> None:
    """Writes everything but weights and ``config.json`` of a directory of some format.

    Args:
        form: its module.
        stage: the directory.
        config: complete official fields.
        tokenizer: with the tokens that the format needs.
    """
    tokenizer_files.save_tokenizer(tokenizer, stage, config, form.MEDIA, **form.TOKENIZER_FIELDS)
    pad, stops = config["llm_config"].get("pad_token_id"), tokenizer_files.stop_token_ids(tokenizer, config["template"])
    fields = {"_from_model_config": True, "eos_token_id": stops, "transformers_version": form.RELEASE}
    write_json(stage / _GENERATION, {**fields, "pad_token_id": tokenizer.pad_token_id if pad is None else pad})
    form.write_processor(stage, config)
    for path in hub_code() if form is official else ():
        shutil.copyfile(path, stage / path.name)


def _with_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """A matrix of ``rows`` rows: cut, or with rows of zeros appended."""
    extra = torch.zeros(max(0, rows - tensor.shape[0]), *tensor.shape[1:], dtype=tensor.dtype)
    return Joined([tensor, MemoryTensor(extra)]).rows(0, rows)


def _check_code(fields: Mapping, directory: Path) -> None:
    """Raises where a directory with InternLM2 lacks the code that runs it, which an export takes along."""
    named = fields.get("auto_map") or {}
    needed = {f"{reference.partition('.')[0]}.py" for reference in named.values()} | set(languages.CODE)
    missing = sorted(name for name in needed if not (directory / name).is_file())
    if missing or "AutoModel" not in named:
        said = f"{directory} holds InternLM2 without the code that runs it ({', '.join(missing) or 'auto_map'})"
        raise CheckpointError(f"{said}; download it, too, or export with --format hf")


def hub_code() -> list[Path]:
    """The files of ``xtuner_plugins/hub`` that an export ships."""
    return sorted(path for path in Path(hub.__path__[0]).glob("*.py") if path.name != "__init__.py")
