"""Published packages as text: their wheels are downloaded and read; nothing of them is installed or imported.

They are kept in `XTUNER_PLUGINS_ENGINES` (default `~/.cache/xtuner_plugins/engines`).
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER

_missing: dict[str, str] = {}


def read(package: str, release: str, name: str) -> str:
    """The text of a file in the wheel of a release; skips the test where it can't be had."""
    folder = Path(os.environ.get("XTUNER_PLUGINS_ENGINES", "~/.cache/xtuner_plugins/engines")).expanduser()
    pattern, wanted = f"{package.replace('-', '_')}-{release}-*.whl", f"{package}=={release}"
    if not any(folder.glob(pattern)) and wanted not in _missing:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", str(folder), wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER)
        if not any(folder.glob(pattern)):
            _missing[wanted] = f"{wanted} can't be had: {done.stderr.strip().splitlines()[-1:]}"
    if wanted in _missing:
        pytest.skip(_missing[wanted])
    with zipfile.ZipFile(sorted(folder.glob(pattern))[0]) as wheel:
        return wheel.read(name).decode()
