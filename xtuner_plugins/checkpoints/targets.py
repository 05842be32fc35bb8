"""What each export format writes: names and order of the tensors, the config, and the files beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from xtuner_plugins.checkpoints import assemble, llava, mappings, native, remote_code, tokenizer_files
from xtuner_plugins.checkpoints.formats import ModelView, our_config, read_fields
from xtuner_plugins.checkpoints.reader import read_json
from xtuner_plugins.checkpoints.tensors import LazyTensor
from xtuner_plugins.checkpoints.writer import write_json

FORMATS = ("official", "hf", "llava")
# What a model directory may hold besides weights, config and code that belongs to the model.
_KEPT_FILES = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    *tokenizer_files.FILES,
)  # fmt: skip


@dataclass
class Target:
    """A model about to be written.

    Attributes:
        tensors: names as they will lie on disk, in order.
        config: ``config.json``.
        write_files: writes everything but weights and config into a directory.
        notes: what a user should know about the choices that were made.
        preprocessing: ``preprocessing.json``, or None for none.
    """

    tensors: dict[str, LazyTensor]
    config: dict
    write_files: Callable[[Path], None]
    notes: list[str] = field(default_factory=list)
    preprocessing: dict | None = None


def make_target(
    view: ModelView, tensors: Mapping[str, LazyTensor], *, form: str | None, dtype: str | None, code: str = "auto",
    template: str | None = None,
) -> Target:  # fmt: skip
    """The target of a form; None is the layout that the directory itself has.

    Args:
        view: the directory that the model comes from.
        tensors: its tensors under our names, trained ones laid over.
        form: one of ``FORMATS``, or None.
        dtype: written into the config; None leaves it.
        code: ``auto`` ships the directory's own model code, ours where that isn't whole; ``ours`` always ours.
            With ours, InternLM2 is written in its exact Llama form.
        template: conversation template of an official form made from an ``-hf`` one; None takes the family's.

    Raises:
        CheckpointError: the form can't express this model.
        ValueError: an unknown form.
    """
    if form is not None and form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; choose one of {', '.join(FORMATS)}")
    own = {"native": "hf", "llava": "llava"}.get(view.layout, "official")
    form = form or own
    # The -hf and LLaVA forms say preprocessing in several files, which are written anew where the training changed it.
    if form == own and (own == "official" or not view.settled.get("changed")):
        target = _as_stored(view, tensors, code)
    elif form == "hf":
        target = _native(view, tensors)
    elif form == "llava":
        target = _llava(view, tensors)
    else:
        target = _official(view, tensors, template)
    if dtype is not None:
        for key in (None, "llm_config", "text_config", "vision_config"):
            fields = target.config if key is None else target.config.get(key)
            if fields is not None:
                fields["torch_dtype"] = dtype
                fields.pop("dtype", None)
    return target


def _as_stored(view: ModelView, tensors: Mapping[str, LazyTensor], code: str) -> Target:
    """The directory's own names and config; its own code where that is whole, else ours."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in view.stored_config.items()}
    missing, notes = _missing_code(view.layout, view.directory), []
    fields, new_template = view.settled.get("fields", {}), "template" in view.settled.get("changed", ())
    if view.layout in ("native", "llava"):  # transformers has their code
        copy_code = None
    elif code == "auto" and not missing:
        copy_code = _copy_own_code
    else:
        copy_code = _copy_our_code
        config["auto_map"] = dict(assemble.AUTO_MAP)
        if code == "auto" and any(view.directory.glob("*.py")):
            notes.append(f"the base's own model code is not whole (it lacks {', '.join(missing)}), so ours is shipped")
    if copy_code is _copy_our_code and view.layout == "internlm2":
        target = _official(view, tensors, None)
        reason = "" if code == "ours" else f" without the code that runs it ({', '.join(missing)})"
        target.notes.append(
            f"the base holds InternLM2{reason}; the export holds it in its exact Llama form, with our model code"
        )
        return target

    def write_files(stage: Path) -> None:
        _copy_files(view.directory, stage)
        if copy_code is not None:
            copy_code(view.directory, stage)
        if new_template:
            _write_template(view, stage)

    if view.layout in ("official", "internlm2"):
        config.update(fields)
    return Target(view.stored(tensors), config, write_files, notes)


def _write_template(view: ModelView, stage: Path) -> None:
    """Lets engines prompt with, and stop at, the template of the training where the base's was another."""
    tokenizer, conversation = tokenizer_files.load_tokenizer(view.directory), _conversation(view.config)
    path = stage / "tokenizer_config.json"
    for extra in stage.glob("chat_template*"):
        extra.unlink()
    fields = read_json(path) if path.is_file() else {}
    write_json(path, {**fields, "chat_template": tokenizer_files.chat_template(tokenizer, conversation)})
    path = stage / "generation_config.json"
    fields = read_json(path) if path.is_file() else {"_from_model_config": True}
    write_json(path, {**fields, "eos_token_id": tokenizer_files.stop_token_ids(tokenizer, conversation)})


def ships_own_code(directory: Path) -> bool:
    """Whether an export of this base ships the base's own code (with ``code='auto'``)."""
    fields = read_fields(directory)
    layout, _ = our_config(fields, directory)
    return layout in ("official", "internlm2") and not _missing_code(layout, directory)


def _missing_code(layout: str, directory: Path) -> list[str]:
    needed = ("configuration_internlm2.py", "modeling_internlm2.py") if layout == "internlm2" else ()
    return remote_code.missing_code(directory) + [name for name in needed if not (directory / name).is_file()]


def _copy_own_code(directory: Path, stage: Path) -> None:
    for path in sorted(directory.glob("*.py")):
        shutil.copyfile(path, stage / path.name)


def _copy_our_code(directory: Path, stage: Path) -> None:
    remote_code.copy_hub_code(stage)


def _copy_files(source: Path, stage: Path) -> None:
    for name in _KEPT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, stage / name)


def _conversation(config: Mapping):
    from xtuner_plugins.hub.conversation import get_conv_template

    return get_conv_template(config["template"])


def _native(view: ModelView, tensors: Mapping[str, LazyTensor]) -> Target:
    """Official to ``-hf``: other names, rows for ``<video>``, processor files."""
    tokenizer = tokenizer_files.load_tokenizer(view.directory)
    image_token = tokenizer_files.token_id(tokenizer, "<IMG_CONTEXT>")
    rows = max(view.config["llm_config"]["vocab_size"], tokenizer_files.num_token_rows(tokenizer))
    if tokenizer_files.token_id(tokenizer, native.VIDEO_TOKEN) is None:
        rows = max(rows, tokenizer_files.num_token_rows(tokenizer) + 1)
    config = native.to_native_config(view.config, image_token, rows)
    conversation = _conversation(view.config)
    stops = tokenizer_files.stop_token_ids(tokenizer, conversation)
    config["text_config"]["eos_token_id"] = stops[0]
    renamed = mappings.OFFICIAL_NATIVE.to_right(tensors)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        renamed[name] = native.pad_rows(renamed[name], rows)

    def write_files(stage: Path) -> None:
        needed = native.write_processor_files(stage, tokenizer, view.config, conversation)
        assert needed <= rows, (needed, rows)
        write_json(stage / "generation_config.json", {
            "_from_model_config": True, "eos_token_id": stops, "pad_token_id": tokenizer.pad_token_id,
            "transformers_version": native.RELEASE,
        })  # fmt: skip

    return Target(renamed, config, write_files)


def _llava(view: ModelView, tensors: Mapping[str, LazyTensor]) -> Target:
    """Official with CLIP or SigLIP to LLaVA: other names, a row for ``<image>``, processor files."""
    llava.check_expressible(view.config)
    tokenizer = tokenizer_files.load_tokenizer(view.directory)
    image_token = llava.add_image_token(tokenizer)
    rows = max(view.config["llm_config"]["vocab_size"], tokenizer_files.num_token_rows(tokenizer))
    config = llava.to_llava_config(view.config, image_token, rows)
    conversation = _conversation(view.config)
    stops = tokenizer_files.stop_token_ids(tokenizer, conversation)
    config["text_config"]["eos_token_id"] = stops[0]
    renamed = mappings.LLAVA_TYPE_LLAVA.to_right(tensors)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        renamed[name] = native.pad_rows(renamed[name], rows)

    def write_files(stage: Path) -> None:
        llava.write_processor_files(stage, tokenizer, view.config, conversation)
        write_json(stage / "generation_config.json", {
            "_from_model_config": True, "eos_token_id": stops, "pad_token_id": tokenizer.pad_token_id,
            "transformers_version": llava.RELEASE,
        })  # fmt: skip

    return Target(renamed, config, write_files)


def _official(view: ModelView, tensors: Mapping[str, LazyTensor], template: str | None) -> Target:
    """``-hf``, LLaVA or InternLM2 to official: our names, code and template, without the processor's own token."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in view.config.items()}
    config["template"] = template or config["template"]
    conversation = _conversation(config)
    tokenizer = tokenizer_files.load_tokenizer(view.directory)
    tensors = dict(tensors)
    rows = config["llm_config"]["vocab_size"]
    token = llava.IMAGE_TOKEN if view.layout == "llava" else native.VIDEO_TOKEN
    if tokenizer_files.token_id(tokenizer, token) == rows - 1:
        rows -= 1
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            tensors[name] = tensors[name].rows(0, rows)
    config["llm_config"]["vocab_size"] = rows
    pad = tokenizer.pad_token_id
    if config["llm_config"].get("pad_token_id") is None:
        config["llm_config"]["pad_token_id"] = pad
    config["auto_map"] = dict(assemble.AUTO_MAP)

    def write_files(stage: Path) -> None:
        template_text = tokenizer_files.chat_template(tokenizer, conversation)
        tokenizer_files.save_tokenizer(tokenizer, stage, template=template_text)
        tokenizer_files.drop_last_token(stage, token)
        assemble.write_small_files(stage, config, tokenizer, conversation)

    return Target(tensors, config, write_files)


def resolve_dtype(name: str | None) -> torch.dtype | None:
    """A torch dtype by name, or None.

    Raises:
        ValueError: not one that weights are written in.
    """
    if name is not None and name not in assemble.DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(assemble.DTYPES)}")
    return assemble.DTYPES[name] if name else None
