"""Arguments that every tool which takes a config has in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, DictAction

from ..config_file import ConfigError, read_config
from ..leaf import Leaf
from ..literals import holds_dict, read_literal

REMEDY = "write a Python literal in quotes, e.g. KEY='{\"crop\": 1.5}', or set it in a config of your own, which "
REMEDY += "tools/new_config.py makes"


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
            help="other values for keys of the runner, e.g. train_cfg.max_iters=100 or "
            "'train_dataloader.dataset.backend_args={\"anon\": True}'",
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


class OptionsAction(DictAction):
    """MMEngine's action for ``--cfg-options``, which reads values that hold a dict, too."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        return read_literal(val) if holds_dict(val) else DictAction._parse_iterable(val)


def parse_options(words: Sequence[str]) -> dict[str, Any] | None:
    """The values of ``--cfg-options``, as MMEngine reads them, and dicts.

    Raises:
        ConfigError: A word that is no ``KEY=VALUE``, or a value that can't be read.
    """
    if not words:
        return None
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=OptionsAction)
    options: dict[str, Any] = {}
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--cfg-options {' '.join(words)}: takes KEY=VALUE pairs, with no space around the =")
        try:
            options |= parser.parse_args(["--options", word]).options
        except AssertionError:
            raise ConfigError(f"--cfg-options {word}: its brackets don't match; {REMEDY}") from None
        except RecursionError:
            raise ConfigError(f"--cfg-options {word}: commas in brackets after other text; {REMEDY}") from None
        except ValueError as error:
            raise ConfigError(f"--cfg-options {word}: {error}; {REMEDY}") from None
    return options
