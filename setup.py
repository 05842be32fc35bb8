"""Names configs/ as the package `xtp_configs`, and puts tools/ into the wheel, where `settings.py` looks for them.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
TOOLS = ("tools/*.py", "tools/*.sh")


class BuildWithShare(build_py):
    """The package's modules, and the tools that a checkout has beside them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, "xtuner_plugins", "share")
        shutil.rmtree(share, ignore_errors=True)
        for pattern in TOOLS:
            for path in sorted(HERE.glob(pattern)):
                target = share / path.relative_to(HERE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(
    cmdclass={"build_py": BuildWithShare},
    packages=[*find_packages(include=["xtuner_plugins*"]), "xtp_configs"],
    package_dir={"xtp_configs": "configs"},
    package_data={
        "xtuner_plugins": ["**/*.jinja", "evaluation/*.jsonl", "deepspeed/*.json"],
        "xtp_configs": ["**/*.py"],
    },
)
