"""The ranges of settings, each said once: for the check of a config's text, and for the class that takes the value.

Nothing here imports PyTorch, so a wrong value is refused before that is imported.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import LOCAL_SCHEME, STORE_PACKAGES, is_url, masked, scheme_of

MAX_TILES = 256  # published configurations use up to 40
ROW_MULTIPLE = 128  # tokens; a row of 8192 is filled up by less than 1 % on average
CHUNK_LOGITS = 2**28  # logits of a loss's chunk on CUDA, in half precision .5 GiB: 1,728 rows of 151,674 words
SOFTMAX_LOGITS = 2**25  # of them, those that a softmax in float32 exists of at a time; on a CPU also the chunk
DTYPE_NAMES = ("bfloat16", "float16", "float32")  # of training
# Objectives of preference tuning, and whether each compares with a reference.
OBJECTIVES = {"dpo": True, "ipo": True, "hinge": True, "bco_pair": True, "orpo": False, "simpo": False, "sft": False}
# A supervised token weighs this power of their number in its sample; the names are those of the official code.
REDUCTIONS = {"token": 0.0, "square": -0.5, "sample": -1.0}
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
    """Numbers that a setting can be: from ``low`` on and less than ``below``; or one of ``others``.

    Attributes:
        low: None for no number at all.
        below: less than this.
        is_whole: whole numbers alone.
        is_above: ``low`` itself is none of them.
        others: further values.
    """

    low: float | None
    below: float = math.inf
    is_whole: bool = False
    is_above: bool = False
    others: tuple = ()

    def holds(self, value: Any) -> bool:
        """Whether the setting can have this value; True and texts are no numbers."""
        if self.low is None or type(value) not in ((int,) if self.is_whole else (int, float)):
            return value in self.others
        return (self.low < value if self.is_above else self.low <= value) and value < self.below or value in self.others

    @property
    def remedy(self) -> str:
        """What to give."""
        if self.low is None:
            return f"it is one of: {', '.join(map(str, self.others))}"
        said = f"give a {'whole ' * self.is_whole}number"
        said += f" above {self.low}" if self.is_above else f", {self.low} or more"
        said += f" and less than {self.below}" if self.below < math.inf else ""
        return said + "".join(f", or {other}" for other in self.others)


_COUNT, _KEPT, _SHARE = Range(1, is_whole=True), Range(1, is_whole=True, others=(-1,)), Range(0, 1)
_ANY, _PART = Range(0), Range(0, 1, is_above=True)
_COUNTS = """row_multiple lora_rank batch_size pack_tokens pack_tiles accumulative_counts val_interval val_batch_size
    val_benchmark_limit val_max_new_tokens""".split()
# By the short names of `settings.SETTINGS`; a setting that is None is left to its class.
RANGES = {
    **dict.fromkeys(_COUNTS, _COUNT),
    **dict.fromkeys(("save_steps", "save_total_limit"), _KEPT),  # -1: no limit
    **dict.fromkeys(("lora_dropout", "drop_path", "warmup_ratio"), _SHARE),  # PEFT takes a dropout of -1 for 0
    **dict.fromkeys(("lr", "weight_decay", "simpo_margin"), _ANY),
    **dict.fromkeys(("visual_encoder_lr", "projector_lr", "llm_lr", "lora_lr"), _PART),
    "num_workers": Range(0, is_whole=True),
    "beta": Range(0, is_above=True),
    "label_smoothing": Range(0, 0.5),  # from 0.5 on, the rejected answer would win
    "max_grad_norm": Range(0, is_above=True, others=(math.inf,)),  # below 0 PyTorch would reverse the gradient
    "dtype": Range(None, others=("auto", *DTYPE_NAMES)),
    "sequence_parallel": Range(None, others=(1, 2, 4, 8)),
    "loss_reduction": Range(None, others=tuple(REDUCTIONS)),
}


def check(name: str, value: Any) -> Any:
    """The value of a setting of `RANGES`; raises `RangeError` where it is out of its range."""
    if not RANGES[name].holds(value):
        raise RangeError(
            f"{name}={value!r} is {'unknown' if RANGES[name].low is None else 'out of range'}", RANGES[name].remedy
        )
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
        if not RANGES["beta"].holds(weight):
            raise RangeError(f"objectives: {weight!r} is no weight of {name}", RANGES["beta"].remedy)
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
