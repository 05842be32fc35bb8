"""The ranges of settings, each said once: for the check of a config's text, and for the class that takes the value.

Nothing here imports PyTorch, so a wrong value is refused before that is imported.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .data_names import LOCAL_SCHEME, STORE_PACKAGES, is_url, masked, scheme_of

MAX_TILES = 256  # published configurations use up to 40
ROW_MULTIPLE = 128  # tokens; a row of 8192 is filled up by less than 1 % on average
CHUNK_LOGITS = 2**28  # logits of a loss's chunk on CUDA, in half precision .5 GiB: 1,728 rows of 151,674 words
SOFTMAX_LOGITS = 2**25  # of them, those that a softmax in float32 exists of at a time; on a CPU also the chunk
DTYPE_NAMES = ("bfloat16", "float16", "float32")  # of training
# Objectives of preference tuning, and whether each compares with a reference.
OBJECTIVES = {"dpo": True, "ipo": True, "hinge": True, "bco_pair": True, "orpo": False, "simpo": False, "sft": False}
# Names of options that hold a credential itself: `key`, `secret`, `token`, `aws_session_token`, `access_key_id` ...
_CREDENTIAL = re.compile(
    r"(?:^|_)(?:key|secret|token|password|passwd|pwd|credentials?|signature|sas)(?:$|_)"
    r"|access_?key|secret|^(?:authorization|cookie)$|password"
)
# What gcsfs takes for `token` that is none, beside the path of a file of credentials
_NO_TOKENS = re.compile(r"anon|google_default|cloud|cache|browser|.*\.json")
_CREDENTIALS_REMEDY = (
    "leave it out: give credentials by environment variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, GOOGLE_APPLICATION_CREDENTIALS), by profile='name', or by "
    "the store's own file of credentials"
)
_USER_IN_URL = re.compile(r"://[^/\s]*:[^\s@]*@")


class RangeError(ValueError):
    """A value out of its range.

    Attributes:
        problem: What is wrong, with the value.
        remedy: What to give instead.
    """

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}; {remedy}")
        self.problem, self.remedy = problem, remedy


class Range(NamedTuple):
    """The values that a setting can have, and what is said of others."""

    holds: Callable[[Any], bool]
    problem: str
    remedy: str


def _number(low: float, below: float = math.inf, *, whole: bool = False, above: bool = False) -> Callable[[Any], bool]:
    """Numbers from ``low`` on (``above``: without it) and less than ``below``; no True, no text."""
    kinds = (int,) if whole else (int, float)
    return lambda value: type(value) in kinds and (low < value if above else low <= value) and value < below


_COUNT, _WHOLE = _number(1, whole=True), "give a whole number above 0"
_PART = Range(_number(0, 1, above=True), "is no learning rate", "give a number above 0 and below 1, or None for lr")
_KEPT = Range(lambda value: value == -1 or _COUNT(value), "is out of range", "give 1 or more, or -1 for no limit")
# By the short names of `settings.SETTINGS`; a setting that is None is left to its class.
RANGES = {
    "dtype": Range(
        lambda value: value in ("auto", *DTYPE_NAMES),
        "is not supported",
        f"it is one of: auto, {', '.join(DTYPE_NAMES)}",
    ),
    "row_multiple": Range(_COUNT, "is no number of tokens", f"{_WHOLE}; 1 fills nothing"),
    "lora_rank": Range(_COUNT, "is no rank", _WHOLE),
    "lora_dropout": Range(_number(0, 1), "is out of range", "give 0 or more, and less than 1"),  # PEFT takes -1 for 0
    "beta": Range(_number(0, above=True), "is no scale of rewards", "give a number above 0 (0.1)"),
    "drop_path": Range(_number(0, 1), "is no rate", "give 0 or more, and less than 1"),
    # From 0.5 on, the rejected answer would win.
    "label_smoothing": Range(_number(0, 0.5), "is out of range", "give 0 or more, and less than 0.5"),
    "simpo_margin": Range(_number(0), "is no margin", "give a number, 0 or more (0.5)"),
    "batch_size": Range(_COUNT, "is no size of a batch", _WHOLE),
    "num_workers": Range(_number(0, whole=True), "is no number of processes", "give a whole number, 0 or more"),
    "pack_tokens": Range(_COUNT, "is no number of tokens", _WHOLE),
    "pack_tiles": Range(_COUNT, "is no number of tiles", f"{_WHOLE}, or None for no limit"),
    "accumulative_counts": Range(_COUNT, "is no number of micro-batches", _WHOLE),
    "lr": Range(_number(0), "is no learning rate", "give a number, 0 or more (1e-4)"),
    "visual_encoder_lr": _PART,
    "projector_lr": _PART,
    "llm_lr": _PART,
    "lora_lr": _PART,
    "weight_decay": Range(_number(0), "is out of range", "give a number, 0 or more"),
    # PyTorch would reverse the gradient.
    "max_grad_norm": Range(
        lambda value: _number(0, above=True)(value) or value == math.inf, "is out of range", "give more than 0"
    ),
    "warmup_ratio": Range(_number(0, 1), "is no share of a run", "give 0 or more, and less than 1"),
    "save_steps": _KEPT,
    "save_total_limit": _KEPT,
    "val_interval": Range(_COUNT, "is no number of optimizer steps", _WHOLE),
    "val_batch_size": Range(_COUNT, "is no size of a batch", _WHOLE),
    "val_benchmark_limit": Range(_COUNT, "is no number of questions", f"{_WHOLE}, or None for all"),
    "val_max_new_tokens": Range(_COUNT, "is no length", _WHOLE),
}


def check(name: str, value: Any) -> Any:
    """The value of a setting of `RANGES`; raises `RangeError` where it is out of its range."""
    if not RANGES[name].holds(value):
        raise RangeError(f"{name}={value!r} {RANGES[name].problem}", RANGES[name].remedy)
    return value


def check_tiles(low: Any, high: Any) -> None:
    """Limits of a grid of tiles; raises `RangeError`."""
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high <= MAX_TILES):
        remedy = f"give whole numbers with 1 <= min_tiles <= max_tiles <= {MAX_TILES}"
        raise RangeError(f"min_tiles={low!r} and max_tiles={high!r} are no tile limits", remedy)


def image_tokens(num_tiles: Sequence[int], tokens_per_tile: int) -> int:
    """Tokens of the spans of images with so many tiles: those of their tiles between a start and an end token."""
    return sum(num_tiles) * tokens_per_tile + 2 * len(num_tiles)


def check_room(max_tiles: int, use_thumbnail: bool, tokens_per_tile: int, limit: int, name: str = "max_length") -> None:
    """Raises `RangeError` where no image can have ``max_tiles``: every large one would be shrunk silently."""

    def tokens(tiles: int) -> int:
        return image_tokens([tiles + (use_thumbnail and tiles > 1)], tokens_per_tile)

    if tokens(max_tiles) < limit:
        return
    fitting = next((tiles for tiles in range(max_tiles, 0, -1) if tokens(tiles) < limit), None)
    lower = f"lower max_tiles to {fitting} or " if fitting else ""
    raise RangeError(
        f"max_tiles={max_tiles} means images of {tokens(max_tiles):,} tokens (thumbnail included), but "
        f"{name}={limit:,}",
        f"{lower}raise {name} above {tokens(max_tiles):,}",
    )


def check_benchmarks(value: Any) -> None:
    """``val_benchmarks``: a path or several; raises `RangeError`."""
    for path in [value] if isinstance(value, str) else value or ():
        if not isinstance(path, str) or not Path(path).exists():
            raise RangeError(
                f"val_benchmarks: {path} does not exist", "correct it, or set val_benchmarks = [] for none"
            )


def check_objectives(value: Any) -> dict[str, float]:
    """The weights of a mixture of preference objectives; raises `RangeError`."""
    names = ", ".join(OBJECTIVES)
    if not isinstance(value, Mapping) or not value:
        raise RangeError(
            f"objectives={value!r} is no mixture", f'give at least one of {names} with its weight: {{"dpo": 1.0}}'
        )
    for name, weight in value.items():
        if name not in OBJECTIVES:
            raise RangeError(f"objectives: {name!r} is unknown", f"there are {names}")
        if not _number(0, above=True)(weight):
            raise RangeError(f"objectives: {weight!r} is no weight of {name}", "give a number above 0")
    return {name: float(weight) for name, weight in value.items()}


def check_store_url(url: str) -> None:
    """A URL among ``data_paths`` or ``image_folders``; raises `RangeError`."""
    scheme = scheme_of(url)
    if scheme == LOCAL_SCHEME:
        return
    if scheme not in STORE_PACKAGES or "::" in url or not url.lower().startswith(scheme):
        known = ", ".join((LOCAL_SCHEME, *STORE_PACKAGES))
        remedy = f"there are {known}; mount another store, or copy the data"
        raise RangeError(f"{masked(url)} is a URL of a kind that isn't read", remedy)
    if _USER_IN_URL.search(url) and scheme not in ("http", "https"):
        raise RangeError(f"{masked(url)} holds a credential itself, which nothing reads there", _CREDENTIALS_REMEDY)
    package = STORE_PACKAGES[scheme]
    if package and importlib.util.find_spec(package) is None:
        raise RangeError(f"{masked(url)} needs the package {package}", f"pip install {package}")


def check_storage_options(value: Any) -> None:
    """``storage_options``, which each run's copy of its config will show; raises `RangeError`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        said = "of numbers" if isinstance(value, Mapping) else f"{masked(repr(value))[:80]}"
        raise RangeError(
            f"storage_options is no dict of options ({said})", "write storage_options=dict(endpoint_url=..., anon=True)"
        )
    if (name := _find_credential(value)) is not None:
        problem = f"storage_options holds a credential itself ({name}), and each run writes a copy of its config"
        raise RangeError(problem, _CREDENTIALS_REMEDY)


def _find_credential(value: Any, name: str = "") -> str | None:
    """The name of the first option that holds a credential."""
    if isinstance(value, Mapping):
        found = (_find_credential(each, f"{name}.{key}" if name else str(key)) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        found = (_find_credential(each, name) for each in value)
    elif not isinstance(value, (str, bytes)) or not value:
        return None
    else:
        last = name.rpartition(".")[2].lower()
        if last == "token" and isinstance(value, str) and _NO_TOKENS.fullmatch(value):
            return None
        in_url = isinstance(value, str) and is_url(value) and _USER_IN_URL.search(value)
        return name if in_url or (_CREDENTIAL.search(last) and not last.endswith(("_file", "_path"))) else None
    return next((each for each in found if each is not None), None)
