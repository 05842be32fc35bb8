"""Puts configs/, tools/ and the page that tools read into the wheel, in the folder that `checkout.py` looks for.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SHARED = ("configs/**/*.py", "tools/*.py", "tools/*.sh", "docs/recipes.md")


class BuildWithShare(build_py):
    """The package's modules, and what a checkout has beside them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, "xtuner_plugins", "share")
        shutil.rmtree(share, ignore_errors=True)
        for pattern in SHARED:
            for path in sorted(HERE.glob(pattern)):
                target = share / path.relative_to(HERE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithShare})
