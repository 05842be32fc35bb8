"""Where configs/, tools/ and docs/recipes.md are: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKED = Path(__file__).with_name("share")  # written by setup.py, only into wheels

ROOT = _PACKED if _PACKED.is_dir() else Path(__file__).resolve().parents[1]
IS_INSTALLED = ROOT == _PACKED
