"""The container's files name what exists; building them needs Docker, which no test does."""

import json
import re

from tests.conftest import ROOT


def test_the_files_name_what_exists_and_install_what_the_makefile_does():
    makefile, text = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile"))
    copied = " ".join(re.findall(r"^COPY (.+) \./?$", text, re.MULTILINE)).split()
    assert copied and all((ROOT / path).exists() for path in copied)
    assert set(re.findall(r"xtuner==[\d.]+", text)) == set(re.findall(r"xtuner==[\d.]+", makefile))
    fields = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / fields["build"]["dockerfile"]).is_file()
