"""Every config of configs/ as it resolves, kept, and the comparison of today's with what is kept.

    python -m tests.golden.resolved            # name what differs
    python -m tests.golden.resolved --write    # keep today's

A config is what MMEngine's runner reads of it. Each ``dict(type=...)`` counts with the defaults of its class, so that a
default that is written out equals one that isn't. The defaults of the day are kept, too: moving a value from configs
into a class changes nothing, another default of a class does.
"""

import argparse
import gzip
import inspect
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.runner import Runner

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KEPT = Path(__file__).parent / "kept" / "resolved_configs.json.gz"
# Defaults that no signature states, by key: of MMEngine's `Runner.setup_env` and of our optimizer constructor.
UNTYPED = {
    "env_cfg": {"cudnn_benchmark": False},
    "optim_wrapper.paramwise_cfg": {"loraplus_lr_ratio": 1, "visual_encoder_layer_decay": 1.0},
}


def plain(value: Any) -> Any:
    """A value as JSON holds it; a class or function is its package and name, wherever in the package it stands."""
    if isinstance(value, LazyObject):
        value = value.build()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if callable(value):
        return f"{value.__module__.partition('.')[0]}.{value.__qualname__}"
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def resolve(lazy: dict) -> dict:
    """What MMEngine's runner reads of a lazy config, plain and without defaults."""
    known = {*inspect.signature(Runner).parameters, "model_wrapper_cfg"}
    found = plain({key: value for key, value in lazy.items() if key in known})
    dataset = found["train_dataloader"]["dataset"]
    if dataset.get("base") == found["model"]["base"]:  # it may be told once or twice
        del dataset["base"]
    return found


@cache
def defaults(kind: Any) -> dict:
    """Defaults of a class or function; those of a base, too, where a constructor passes ``**options`` on."""
    functions = [kind]
    if inspect.isclass(kind):
        functions = [vars(owner)["__init__"] for owner in kind.__mro__[:-1] if "__init__" in vars(owner)]
    found: dict = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        found = {p.name: plain(p.default) for p in parameters if p.default is not p.empty} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def kinds(value: Any) -> Iterator[Any]:
    """Classes and functions that stand as ``type`` in a lazy config."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), LazyObject):
            yield value["type"].build()
        for item in value.values():
            yield from kinds(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from kinds(item)


def today() -> dict[str, dict]:
    """``configs`` by stem; ``defaults`` by type, or by key of a dict without one."""
    paths = {path.stem: path for path in sorted(CONFIGS.rglob("[!_]*.py")) if "_base_" not in path.parts}
    configs = {name: Config.fromfile(path)._to_lazy_dict() for name, path in paths.items()}
    filled = {plain(kind): defaults(kind) for config in configs.values() for kind in kinds(config)}
    filled |= {**UNTYPED, "": defaults(Runner), "randomness": defaults(Runner.set_randomness)}
    return {"configs": {name: resolve(lazy) for name, lazy in configs.items()}, "defaults": filled}


def entries(value: Any, known: dict[str, dict], at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that isn't None, defaults included."""
    if isinstance(value, dict):
        for key, item in {**known.get(value.get("type", at), {}), **value}.items():
            yield from entries(item, known, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from entries(item, known, f"{at}.{index}")
    elif value is not None:
        yield at, value


def differences(kept: dict, new: dict) -> list[str]:
    """A line for each config that came, went, or has other values."""
    lines = [f"{name}: not kept" for name in sorted(new["configs"].keys() - kept["configs"].keys())]
    for name, before in kept["configs"].items():
        if name not in new["configs"]:
            lines.append(f"{name}: gone")
            continue
        old = dict(entries(before, kept["defaults"]))
        now = dict(entries(new["configs"][name], new["defaults"]))
        keys = [key for key in {**old, **now} if old.get(key) != now.get(key)]
        if keys:
            lines.append(f"{name}: " + "; ".join(f"{key}={now.get(key)!r}, kept {old.get(key)!r}" for key in keys))
    return lines


def read() -> dict:
    return json.loads(gzip.decompress(KEPT.read_bytes()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep today's configs")
    args = parser.parse_args()
    new = today()
    if args.write:
        KEPT.write_bytes(gzip.compress(json.dumps(new, separators=(",", ":")).encode(), mtime=0))
        return 0
    lines = differences(read(), new)
    print("\n".join(lines) or f"{len(new['configs'])} configs: equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
