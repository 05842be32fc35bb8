"""The ranges of settings, each said once: for the check of a config's text, and for the class that takes the value.

Nothing here imports PyTorch, so a wrong value is refused before that is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import SettingError
from .files import LOCAL_SCHEME, STORE_SCHEMES, is_url, masked, scheme_of

MAX_TILES = 256  # published configurations use up to 40
ROW_MULTIPLE = 128  # tokens; a row of 8192 is filled up by less than 1 % on average
CHUNK_LOGITS = 2**28  # logits of a loss's chunk on CUDA, in half precision .5 GiB: 1,728 rows of 151,674 words
SOFTMAX_LOGITS = 2**25  # of them, those that a softmax in float32 exists of at a time; on a CPU also the chunk
DECODING = (False, True, "auto")  # of images, fast
DTYPE_NAMES = ("bfloat16", "float16", "float32")  # of training
# Objectives of preference tuning, and whether each compares with a reference.
OBJECTIVES = {"dpo": True, "ipo": True, "hinge": True, "bco_pair": True, "orpo": False, "simpo": False, "sft": False}
# A supervised token weighs this power of their number in its sample; the names are those of the official code.
REDUCTIONS = {"token": 0.0, "square": -0.5, "sample": -1.0}
# Names of options that hold a credential itself: `key`, `secret`, `aws_session_token`, `access_key_id` ...
_CREDENTIAL = re.compile(
    r"(?<![a-z])(key|token|pwd|sas|signature|credentials?|cookie)(?![a-z])|access_?key|secret|passw|authorization"
)
# What names a file of credentials, and what gcsfs takes for `token` that is none
_NO_CREDENTIAL = re.compile(r"\w*(_file|_path)=.*|token=(anon|google_default|cloud|cache|browser|.*\.json)", re.DOTALL)
_CREDENTIALS_REMEDY = (
    "leave it out: give credentials by environment variables (AWS_ACCESS_KEY_ID, OSS_ACCESS_KEY_ID, "
    "GOOGLE_APPLICATION_CREDENTIALS ...), by profile='name', or by the store's own file of credentials"
)
_USER_IN_URL = re.compile(r"://[^/\s]*:[^\s@]*@")


class Range(NamedTuple):
    """Values that a setting can have: numbers from ``low`` on and less than ``below``, or one of ``others``.

    Attributes:
        kinds: Types of the numbers; none where only ``others`` count.
        is_above: ``low`` itself is no such number.
    """

    low: float = 0
    below: float = math.inf
    kinds: tuple[type, ...] = (int, float)
    is_above: bool = False
    others: tuple = ()

    def holds(self, value: Any) -> bool:
        """Whether the setting can have this value; True and texts are no numbers."""
        is_number = type(value) in self.kinds and self.low <= value < self.below
        return is_number and not (self.is_above and value == self.low) or value in self.others

    @property
    def remedy(self) -> str:
        """What to give."""
        if not self.kinds:
            return f"it is one of: {', '.join(map(str, self.others))}"
        said = f"give a {'whole ' * (self.kinds == (int,))}number"
        said += f" above {self.low}" if self.is_above else f", {self.low} or more"
        said += f" and less than {self.below}" if self.below < math.inf else ""
        return said + "".join(f", or {other}" for other in self.others)


_ABOVE = Range(is_above=True)
_COUNTS = """max_length num_frames row_multiple flash_window lora_rank batch_size pack_tokens pack_tiles
    accumulative_counts val_interval val_batch_size val_benchmark_limit val_max_new_tokens""".split()
# By the short names of `settings.SETTINGS`, or an argument's own; a setting that is None is left to its class.
RANGES = {
    **dict.fromkeys(_COUNTS, Range(1, kinds=(int,))),
    **dict.fromkeys(("save_steps", "save_total_limit"), Range(1, kinds=(int,), others=(-1,))),  # -1: no limit
    **dict.fromkeys(("lora_dropout", "drop_path", "warmup_ratio"), Range(0, 1)),  # PEFT takes a dropout of -1 for 0
    **dict.fromkeys(("lr", "weight_decay", "simpo_margin"), Range()),
    **dict.fromkeys(("visual_encoder_lr", "projector_lr", "llm_lr", "lora_lr"), _ABOVE._replace(below=1)),
    "num_workers": Range(kinds=(int,)),
    **dict.fromkeys(("beta", "loraplus_lr_ratio"), _ABOVE),
    "flash_percentile": _ABOVE._replace(below=1),
    "label_smoothing": Range(0, 0.5),  # from 0.5 on, the rejected answer would win
    "max_grad_norm": _ABOVE._replace(others=(math.inf,)),  # below 0 PyTorch would reverse the gradient
    "dtype": Range(kinds=(), others=("auto", *DTYPE_NAMES)),
    "sequence_parallel": Range(kinds=(), others=(1, 2, 4, 8)),
    "loss_reduction": Range(kinds=(), others=tuple(REDUCTIONS)),
    "fast_decoding": Range(kinds=(), others=DECODING),
    "on_bad_sample": Range(kinds=(), others=("raise", "skip")),
    "group_by": Range(kinds=(), others=(None, "length", "modality")),
}


def check(name: str, value: Any) -> Any:
    """The value of a setting of `RANGES`; raises `SettingError` where it is out of its range."""
    if not RANGES[name].holds(value):
        problem = "out of range" if RANGES[name].kinds else "unknown"
        raise SettingError(name, f"{name}={value!r} is {problem}", RANGES[name].remedy)
    return value


def check_length(max_iters: Any, max_epochs: Any) -> None:
    """Raises `ValueError` unless ``max_iters`` or ``max_epochs`` is given, and both are above 0."""
    if max_iters is None and max_epochs is None:
        raise ValueError("train_cfg needs max_iters (optimizer steps) or max_epochs")
    for name, value in (("max_iters", max_iters), ("max_epochs", max_epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is no length of a run; give more than 0")


def check_tiles(low: Any, high: Any) -> None:
    """Limits of a grid of tiles; raises `SettingError`."""
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high <= MAX_TILES):
        remedy = f"give whole numbers with 1 <= min_tiles <= max_tiles <= {MAX_TILES}"
        raise SettingError("tile_limits", f"min_tiles={low!r} and max_tiles={high!r} are no tile limits", remedy)


def image_tokens(num_tiles: Sequence[int], tokens_per_tile: int) -> int:
    """Tokens of the spans of images with so many tiles: those of their tiles between a start and an end token."""
    return sum(num_tiles) * tokens_per_tile + 2 * len(num_tiles)


def check_room(max_tiles: int, use_thumbnail: bool, tokens_per_tile: int, limit: int, name: str = "max_length") -> None:
    """Raises `SettingError` where no image can have ``max_tiles``: every large one would be shrunk silently."""
    needed = {
        tiles: image_tokens([tiles + (use_thumbnail and tiles > 1)], tokens_per_tile)
        for tiles in range(1, max_tiles + 1)
    }
    if needed[max_tiles] >= limit:
        fitting = max((tiles for tiles in needed if needed[tiles] < limit), default=None)
        lower, most = f"lower max_tiles to {fitting} or " if fitting else "", f"{needed[max_tiles]:,}"
        problem = f"max_tiles={max_tiles} means images of {most} tokens (thumbnail included), but {name}={limit:,}"
        raise SettingError("max_tiles", problem, f"{lower}raise {name} above {most}")


def check_packs(batch_size: Any) -> None:
    """The number of packs in a micro-batch; raises `SettingError`."""
    if batch_size != 1:
        raise SettingError("batch_size", f"batch_size={batch_size} with packing", "set it to 1: a pack is a batch")


def check_benchmarks(value: Any) -> None:
    """``val_benchmarks``: a path or several; raises `SettingError`."""
    for path in [value] if isinstance(value, str) else value or ():
        if not isinstance(path, str) or not Path(path).exists():
            remedy = "correct it, or set val_benchmarks = [] for none"
            raise SettingError("val_benchmarks", f"val_benchmarks: {path} does not exist", remedy)


def check_objectives(value: Any) -> dict[str, float]:
    """The weights of a mixture of preference objectives; raises `SettingError`."""
    names = ", ".join(OBJECTIVES)
    if not isinstance(value, Mapping) or not value:
        remedy = f'give at least one of {names} with its weight: {{"dpo": 1.0}}'
        raise SettingError("objectives", f"objectives={value!r} is no mixture", remedy)
    for name, weight in value.items():
        if name not in OBJECTIVES:
            raise SettingError("objectives", f"objectives: {name!r} is unknown", f"there are {names}")
        if not RANGES["beta"].holds(weight):
            problem = f"objectives: {weight!r} is no weight of {name}"
            raise SettingError("objectives", problem, RANGES["beta"].remedy)
    return {name: float(weight) for name, weight in value.items()}


def check_store_url(url: str) -> None:
    """A URL among ``data_paths`` or ``image_folders``; raises `SettingError`."""
    scheme, shown = scheme_of(url), masked(url)
    if scheme == LOCAL_SCHEME:
        return
    if scheme not in STORE_SCHEMES or "::" in url or not url.lower().startswith(scheme):
        remedy = f"there are {', '.join((LOCAL_SCHEME, *STORE_SCHEMES))}; mount another store, or copy the data"
        raise SettingError("storage_options", f"{shown} is a URL of a kind that isn't read", remedy)
    if _USER_IN_URL.search(url) and scheme not in ("http", "https"):
        problem = f"{shown} holds a credential itself, which nothing reads there"
        raise SettingError("storage_options", problem, _CREDENTIALS_REMEDY)


def check_storage_options(value: Any) -> None:
    """``storage_options``, which each run's copy of its config will show; raises `SettingError`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        problem = f"storage_options={masked(repr(value))[:80]} is no dict of options"
        raise SettingError("storage_options", problem, "write storage_options=dict(endpoint_url=..., anon=True)")
    if name := next(_find_credentials(value, ""), None):
        problem = f"storage_options holds a credential itself ({name}), and each run writes a copy of its config"
        raise SettingError("storage_options", problem, _CREDENTIALS_REMEDY)


def _find_credentials(value: Any, name: str) -> Iterator[str]:
    """Names of options that hold a credential."""
    if isinstance(value, (Mapping, list, tuple)):
        named = value.items() if isinstance(value, Mapping) else ((name, each) for each in value)
        for key, each in named:
            yield from _find_credentials(each, str(key).lower())
    elif isinstance(value, (str, bytes)) and value:
        text = value if isinstance(value, str) else ""
        is_named = _CREDENTIAL.search(name) and not _NO_CREDENTIAL.fullmatch(f"{name}={text}")
        if is_named or (is_url(text) and _USER_IN_URL.search(text)):
            yield name
