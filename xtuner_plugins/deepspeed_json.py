"""The DeepSpeed settings behind the names that ``--deepspeed`` takes: our own files, not XTuner's of the same names.

XTuner's leave the dtype of accumulated gradients to DeepSpeed, which then adds micro-steps up in bfloat16.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from .settings import ConfigError

OURS = {path.stem: path for path in sorted((Path(__file__).parent / "deepspeed").glob("*.json"))}


def deepspeed_file(value: str) -> Path:
    """The JSON file that a value of ``--deepspeed`` means: an existing file, else ours of that name.

    Raises:
        ConfigError: Neither, or not a JSON file with an object.
    """
    path = Path(value) if Path(value).is_file() else OURS.get(value)
    if path is None:
        if value.endswith(".json"):
            raise ConfigError(f"--deepspeed {value}: no such file")
        close = difflib.get_close_matches(value, OURS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "give a JSON file or one of these"
        raise ConfigError(f"--deepspeed {value}: unknown; {hint} (known: {', '.join(OURS)})")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--deepspeed {value}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--deepspeed {value}: holds a {type(settings).__name__}, not an object of settings")
    return path


def read_deepspeed(value: str) -> dict[str, Any]:
    """The settings in the file of a value of ``--deepspeed``; raises as `deepspeed_file`."""
    return json.loads(deepspeed_file(value).read_text(encoding="utf-8"))
