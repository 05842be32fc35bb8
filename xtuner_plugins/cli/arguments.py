"""Arguments that every tool which takes a config has in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config_file import ConfigError, read_config
from ..leaf import Leaf

if TYPE_CHECKING:
    from mmengine.config import Config


def add_config_options(parser: argparse.ArgumentParser, cfg_options: bool = True) -> None:
    """Adds ``--set`` and ``--cfg-options``; both may be given several times."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other values for names of the config's Settings, e.g. lr=5e-5 max_tiles=6 data_paths=a.jsonl,b.jsonl",
    )
    if cfg_options:
        parser.add_argument(
            "--cfg-options",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="other values for keys of the runner, e.g. train_cfg.max_iters=100",
        )


def read_changed(path: str, pairs: Sequence[str], options: Sequence[str]) -> Config:
    """The config of a file with what ``--set`` and ``--cfg-options`` change.

    Args:
        path: Of the config.
        pairs: The words of ``--set``.
        options: The words of ``--cfg-options``.

    Raises:
        ConfigError: The config or a word can't be used.
    """
    text = Leaf.read(path).changed(pairs).standalone() if pairs else None
    return read_config(path, parse_options(options), text)


def parse_options(words: Sequence[str]) -> dict[str, Any] | None:
    """The values of ``--cfg-options``, read as XTuner's command reads them.

    Raises:
        ConfigError: A word that is no ``KEY=VALUE``.
    """
    if not words:
        return None
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--options", *words]).options
    except ValueError:
        raise ConfigError(
            f"--cfg-options {' '.join(words)}: takes KEY=VALUE pairs, with no space around the ="
        ) from None
