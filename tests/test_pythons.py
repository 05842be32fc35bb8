"""On every supported Python a fresh machine gets the versions that were tested; `tests/pythons.sh` runs the tests."""

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PYTHONS = {"": ("3.10", "3.11", "3.12"), "-today": ("3.11", "3.12", "3.13")}  # of each stack


def versions(name: str, python: str) -> dict[str, str]:
    """The specifiers that a file gives its packages on a Python, each package once."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found, environment = {}, {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux"}
    for item in (Requirement(line) for line in lines if line and not line.startswith("-")):
        if item.marker is None or item.marker.evaluate(environment):
            assert found.setdefault(canonicalize_name(item.name), item.specifier) == item.specifier, item
    return found


def test_lock_files_hold_what_is_asked_for():
    for stack, python in ((stack, python) for stack, pythons in PYTHONS.items() for python in pythons):
        own, lock = f"requirements{stack}.txt", f"constraints{stack}.txt"
        assert f"-c {lock}" in (ROOT / own).read_text().splitlines()
        asked = versions(own, python) | versions("requirements-dev.txt", python)
        assert asked.items() <= versions(lock, python).items(), (stack, python)
