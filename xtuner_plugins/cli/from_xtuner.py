"""Reads the InternVL and LLaVA configs of XTuner 0.2.0 and says the same as one of ours."""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from ..settings import ConfigError, read_config
from .derived import derive, launch_line
from .xtuner_internvl import InternVLConfig
from .xtuner_llava import LlavaConfig

KINDS = {kind.model_type: kind for kind in (InternVLConfig, LlavaConfig)}


@dataclass(frozen=True)
class Imported:
    """A config of XTuner's as one of ours.

    Attributes:
        text: The Python file.
        parent: Stem of the config that it takes in.
        launch: The command that starts it.
        notes: What could not be carried over, or means something else here; one line each.
        paths: Base, annotation files and image folders that it names.
    """

    text: str
    parent: str
    launch: str
    notes: list[str]
    paths: list[str]


def find_xtuner_config(name: str) -> str:
    """The path of a config that is given by its path, or by the name of one that XTuner ships.

    Raises:
        ConfigError: There is none; names those whose names are nearest.
    """
    if Path(name).is_file():
        return name
    spec = importlib.util.find_spec("xtuner")  # imports nothing
    folder = Path(spec.submodule_search_locations[0], "configs") if spec else Path("no_xtuner")
    known = {path.stem: str(path) for path in folder.rglob("*.py") if not path.name.startswith("_")}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(Path(name).stem, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "give a path, or a name as `xtuner train` takes it"
    raise ConfigError(f"config {name} does not exist; {hint}")


def import_config(name: str, out: Path, base: str | None = None) -> Imported:
    """Reads an InternVL or LLaVA config of XTuner's and writes it as one of ours.

    Args:
        name: Its path, or the name of one that XTuner ships.
        out: Where the text will lie; decides the launch line.
        base: Model directory to train from; None takes the config's own.

    Raises:
        ConfigError: No such file, one that doesn't run, or one that trains something else.
    """
    path = find_xtuner_config(name)
    cfg = read_config(path)._to_lazy_dict()
    if cfg.get("optim_wrapper", {}).get("constructor") or "model_resource" in cfg:
        raise ConfigError(f"config {path} is no config of XTuner's own; tools/new_config.py writes one")
    kind = str(cfg.get("model", {}).get("type"))
    if kind not in KINDS:
        raise ConfigError(f"config {path} trains {kind}; XTuner's configs of {' and '.join(KINDS)} are read, no others")
    reader = KINDS[kind](path, cfg)
    reader.derive(base)
    launch = re.sub(r"^NPROC_PER_NODE=\d+ ", "", launch_line(reader.parent, out))
    if reader.processes > 1:
        strategy = "" if "--deepspeed" in launch else " --deepspeed deepspeed_zero2"
        launch = f"NPROC_PER_NODE={reader.processes} {launch}{strategy}"
    text = derive(reader.parent, {**reader.labels, "launch": launch}, reader.changes, reader.imports)
    paths = [reader.changes["model.base"], *reader.paths, *reader.folders]
    return Imported(text, reader.parent, launch, reader.advice + reader.notes, list(dict.fromkeys(paths)))
