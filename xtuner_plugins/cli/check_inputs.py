"""Opens what `tools/check_data.py` checks: a config's training and validation data, or annotation files."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from ..processes import quiet_imports
from ..settings import ConfigError, find_config, import_types, parse_words, read_config, validation_settings


def is_config(name: str) -> bool:
    """A Python file, or a bare word that is no file: the name of a config."""
    return name.endswith(".py") or (Path(name).name == name and not Path(name).suffix and not Path(name).exists())


def open_inputs(args: argparse.Namespace) -> tuple:
    """The dataset of a config or of annotation files, that of validation if there is one, and benchmarks or None."""
    if is_config(args.inputs[0]):
        return build_datasets(args.inputs[0], args.set, args.cfg_options)
    quiet_imports()
    from ..datasets import MultimodalDataset, PreferenceDataset, SettingError
    from ..datasets.audit.looking import PlainFiles
    from ..datasets.meta_file import expand_metas

    folders = [folder or None for folder in args.image_folder] or [None]
    if len(folders) == 1:
        folders *= len(args.inputs)
    if len(folders) != len(args.inputs):
        raise SettingError(
            "image_folder",
            f"{len(folders)} image folders for {len(args.inputs)} files",
            "give one --image-folder for each file, or one for all",
        )
    kind = PreferenceDataset if args.pairs else MultimodalDataset
    opened = []
    for files, of_files in ((args.inputs, folders), (args.val, [args.val_image_folder] * len(args.val))):
        if files:
            if args.base:
                opened.append(kind(args.base, files, of_files))
            else:
                files, of_files, *_ = expand_metas(files, of_files)
                opened.append(PlainFiles(files, of_files, parse=kind.parse))
    return opened, None


def build_datasets(name: str, pairs: list[str], options: list[str]) -> tuple:
    """As `open_inputs`, of a config."""
    path = find_config(name)
    config = read_config(path, parse_words(pairs, options))
    settings = (config.get("train_dataloader") or {}).get("dataset")
    if settings is None:
        raise ConfigError(f"config {path!r} has no train_dataloader.dataset; name a training config")
    base = settings.get("base")
    if isinstance(base, str) and not Path(base).is_dir():  # known before anything large is imported
        raise ConfigError(
            f"model directory {base!r} isn't there; build it with tools/build_base_model.py or correct 'base'"
        )
    quiet_imports()
    import_types(config)
    from mmengine.registry import DATASETS

    from ..engine.hooks.validation_scores import validation_dataset

    validation = validation_settings(config)
    wanted = [settings]
    if validation.get("data_paths"):
        wanted.append(validation_dataset(settings, validation["data_paths"], validation.get("image_folders")))
    try:
        return [DATASETS.build(each) for each in wanted], open_benchmarks(validation)
    except (TypeError, KeyError) as error:  # an unknown or missing setting, or type
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: train_dataloader.dataset: {text}; correct the setting's name") from None


def open_benchmarks(validation):
    """The questions of `val_benchmarks`, to be compared with the training data; None without."""
    files = validation.get("benchmarks") or ()
    if not files:
        return None
    from ..datasets.audit.looking import AskedFile, AskedFiles
    from ..engine.hooks.validation_scores import open_questions

    found = open_questions(files, images=validation.get("benchmark_images"))
    questions = [[(item.question.id, item.question.text, item.question.paths) for item in each.items] for each in found]
    return AskedFiles([AskedFile(each.name, each.path, asked) for each, asked in zip(found, questions, strict=True)])


def prepare_output(path: str) -> None:
    """Make sure that a result can be written, which is better known before an hour of checking.

    Raises:
        SettingError: it can't.
    """
    from ..datasets.errors import SettingError

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a"):
            pass
    except OSError as error:
        raise SettingError("output", f"{path!r} can't be written ({error.strerror})", "name another file") from None


def open_port(port: int) -> socket.socket:
    """The port of `--serve`, taken before an hour of checking.

    Raises:
        SettingError: another program has it.
    """
    from ..datasets.errors import SettingError
    from ..serving.listening import listen

    try:
        return listen("127.0.0.1", port)
    except ValueError as error:
        raise SettingError("serve", str(error), "--serve alone takes a free port") from None
