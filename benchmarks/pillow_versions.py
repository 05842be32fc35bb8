"""Every tile equals Pillow's, whichever Pillow: the tests of resizing, run with real releases of it.

    python benchmarks/pillow_versions.py [11.3.0 12.1.1 12.2.0 12.3.0 13.0.0]

Pillow's releases run the two passes of a resize in three orders (`xtuner_plugins/datasets/images/resize_rules.py`).
Each release named is installed into a temporary folder, beside the installed one, and the tests of the rules,
the tiling, the decoders and the routes run with it. Pillow 13 needs Python 3.11. Exit status 1 if any of them fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ("11.3.0", "12.1.1", "12.2.0", "12.3.0", "13.0.0")  # the ends of each rule
TESTS = (
    "tests/datasets/images/test_resize_rules.py",
    "tests/datasets/images/test_tiling.py",
    "tests/datasets/images/test_media.py",
    "tests/datasets/images/test_decoding.py",
)


def try_release(release: str, folder: str) -> bool:
    """Install one release of Pillow into a folder and run the tests with it; whether they pass."""
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", folder]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}
    version = "import PIL; print(PIL.__version__, end='')"
    if subprocess.run([sys.executable, *install, f"pillow=={release}"]).returncode:
        print(f"Pillow {release}: can't be installed for Python {sys.version.split()[0]}", flush=True)
        return False
    used = subprocess.run([sys.executable, "-c", version], env=environment, capture_output=True, text=True, check=True)
    assert used.stdout == release, f"{used.stdout} is imported, not {release}"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], env=environment, cwd=ROOT)
    print(f"Pillow {release}: {'passed' if done.returncode == 0 else 'FAILED'}", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=RELEASES)
    passed = []
    for release in parser.parse_args().releases:
        with tempfile.TemporaryDirectory() as folder:
            passed.append(try_release(release, folder))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
