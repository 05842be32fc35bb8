"""Where configs/ and tools/ are: beside the package in a checkout, installed with it by a wheel."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKED = _HERE / "share"  # written by setup.py, only into wheels

IS_INSTALLED = _PACKED.is_dir()
ROOT = _PACKED if IS_INSTALLED else _HERE.parent
CONFIGS = _HERE.parent / ("xtp_configs" if IS_INSTALLED else "configs")
