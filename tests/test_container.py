"""The container files name what exists; building them needs Docker, which no test does."""

import json
import re

import yaml

from tests.conftest import ROOT
from xtuner_plugins.cli import xtp


def test_services_start_commands_that_exist():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {"train", "chat", "demo", "server"} == set(services)
    for service in services.values():
        assert service["entrypoint"][0] == "xtp" and xtp.find_tool(service["entrypoint"][1])
        build = service["build"] if isinstance(service["build"], dict) else {}
        assert (ROOT / build.get("dockerfile", "Dockerfile")).is_file()


def test_images_copy_what_exists_and_install_what_the_makefile_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (xtuner,) = set(re.findall(r"xtuner==[\d.]+", makefile))
    for name in ("Dockerfile", "Dockerfile.cpu"):
        text = (ROOT / name).read_text(encoding="utf-8")
        copied = " ".join(re.findall(r"^COPY (.+) \./?$", text, re.MULTILINE)).split()
        assert copied and all((ROOT / path).exists() for path in copied)
        assert re.findall(r"xtuner==[\d.]+", text) == [xtuner]
        assert re.search(r"^USER 1000", text, re.MULTILINE), "not as root"


def test_what_git_ignores_stays_out_of_the_image():
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv*", "work_dirs", "build"} <= set(left_out)
    held = [path.name for path in (ROOT / "xtuner_plugins").iterdir()]
    assert "models" in held and "**/models" not in left_out  # the pattern without `**/` is the folder of weights


def test_the_development_container_builds_the_cpu_image():
    fields = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / fields["build"]["dockerfile"]).is_file()
