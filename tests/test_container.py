"""The container's files name what exists; building them needs Docker, which no test does."""

import json
import re

from tests.conftest import ROOT


def test_the_image_copies_what_exists_and_installs_what_the_makefile_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (xtuner,) = set(re.findall(r"xtuner==[\d.]+", makefile))
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = " ".join(re.findall(r"^COPY (.+) \./?$", text, re.MULTILINE)).split()
    assert copied and all((ROOT / path).exists() for path in copied)
    assert re.findall(r"xtuner==[\d.]+", text) == [xtuner]
    assert re.search(r"^USER 1000", text, re.MULTILINE), "not as root"


def test_what_git_ignores_stays_out_of_the_image():
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv*", "work_dirs", "build"} <= set(left_out)
    held = [path.name for path in (ROOT / "xtuner_plugins").iterdir()]
    assert "models" in held and "**/models" not in left_out  # the pattern without `**/` is the folder of weights


def test_the_development_container_builds_the_image():
    fields = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / fields["build"]["dockerfile"]).is_file()
