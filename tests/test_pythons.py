"""What holds on every supported Python: a fresh machine gets the versions that were tested, and no module warns.

`tests/pythons.sh` runs the unit tests on each of them.
"""

import re
import warnings
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = {"": ("3.10.13", "3.11.7", "3.12.1"), "-today": ("3.11.7", "3.12.1", "3.13.0")}  # of each stack


def read(name: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def normalized(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def test_every_requirement_has_one_version_for_all_pythons():
    for requirement in (each for name in ("", "-today", "-dev") for each in read(f"requirements{name}.txt")):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)) and requirement.marker is None, requirement


def test_each_lock_file_holds_one_version_of_each_package_for_each_python():
    for stack, python in ((stack, python) for stack, pythons in PYTHONS.items() for python in pythons):
        own, lock = f"requirements{stack}.txt", f"constraints{stack}.txt"
        assert f"-c {lock}" in (ROOT / own).read_text().splitlines()
        asked = {normalized(item): str(item.specifier) for item in read(own) + read("requirements-dev.txt")}
        environment = {
            "python_version": ".".join(python.split(".")[:2]),
            "python_full_version": python,
            "sys_platform": "linux",
            "platform_machine": "x86_64",
        }
        versions = {}
        for item in read(lock):
            if item.marker is None or item.marker.evaluate(environment):
                assert versions.setdefault(normalized(item), str(item.specifier)) == str(item.specifier), item
        assert asked.items() <= versions.items(), (stack, python)


def test_no_module_warns_when_it_is_compiled():
    """Invalid escapes: a warning that users see from Python 3.12 on, and an error one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in ("xtuner_plugins", "tools", "tests", "benchmarks", "configs", "docs", "notebooks"):
            for path in (ROOT / folder).rglob("*.py"):
                compile(path.read_bytes(), str(path), "exec")
