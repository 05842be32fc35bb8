"""The hub code under every transformers release that it promises, each in an environment of its own (slow tier).

An environment borrows torch and everything else that fits from the running interpreter, through a `.pth` file, and
adds only the release of transformers and what that one needs in other versions: some 100 MB each instead of 5 GB.
They are kept in `XTUNER_PLUGINS_VERSIONS` (default `~/.cache/xtuner_plugins/transformers`) and reused. A release that
can't be installed is an error, never a skip.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER
from tests.weights.language_models import write_llm
from xtuner_plugins.export.base.build import build_base

from .cases import LLMS, RMS_VISION, TOWERS, VISION, llava_config, make_config, make_tokenizer, write_directory
from .probing import compare_reports, run_probe

pytestmark = [
    pytest.mark.release,
    pytest.mark.xdist_group("releases of transformers"),
]  # one process makes the environments

REFERENCE = "4.57.6"  # the one that training runs on
NEWEST = ">=5,<6"
RELEASES = ("4.37.2", "4.44.2", "4.49.0", REFERENCE, "5.0.0", NEWEST)

# Where transformers got each LLM; the vision tower alternates, so that both kinds meet every release.
CASES = {
    "qwen2": (VISION, (4, 37)),
    "llama": (RMS_VISION, (4, 37)),
    "phi3": (VISION, (4, 41)),
    "qwen3": (RMS_VISION, (4, 51)),
}
# Assembled from the layouts and vocabularies that InternLM2 and the first Qwen have; they run as Llama and Qwen2.
ASSEMBLED = {"internlm2": "internlm2-chat", "qwen": "internvl2_5"}


@functools.cache
def environment(release):
    """The interpreter of the environment of a release, made when it isn't there yet.

    Raises:
        RuntimeError: It can't be made; the message holds what the installer said.
    """
    root = Path(os.environ.get("XTUNER_PLUGINS_VERSIONS", "~/.cache/xtuner_plugins/transformers")).expanduser()
    major, minor = sys.version_info[:2]
    folder = root / f"py{major}{minor}-{'newest' if release == NEWEST else release}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        run([sys.executable, "-m", "venv", "--without-pip", "--clear", folder], release)
    # Also where it is there: another checkout, which may be gone, may have made it.
    own = folder / "lib" / f"python{major}.{minor}" / "site-packages"
    (own / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    if not done.exists() or release == NEWEST:  # what is the newest has to be asked each time
        specifier = release if release == NEWEST else f"=={release}"
        run([python, "-m", "pip", "install", "--quiet", "--upgrade", f"transformers{specifier}"], release)
        done.touch()
    return python


def run(command, release):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=HANGS_AFTER)
    if done.returncode:
        said = f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        raise RuntimeError(f"transformers {release} can't be installed, so it is not tested: {said}")


@pytest.fixture(scope="module")
def directories(tmp_path_factory, toy_base, toy_parts):
    """One exported directory a case."""
    root = tmp_path_factory.mktemp("exports")
    words = len(make_tokenizer(root / "tokenizer"))
    configs = {name: make_config(vision, LLMS[name], vocab_size=words) for name, (vision, _) in CASES.items()}
    configs |= {name: llava_config(name, vocab_size=words) for name in TOWERS}
    made = {name: write_directory(root / name, config, root / "tokenizer") for name, config in configs.items()}
    vision, llm = toy_parts
    for name, template in ASSEMBLED.items():
        part = write_llm(name, root / f"{name}-llm", llm, own_vocabulary=True)
        build_base(vision, part, root / name, template=template, dtype="float32")
        made[name] = root / name
    return {**made, "assembled": toy_base}


@pytest.fixture(scope="module")
def references(directories, tmp_path_factory):
    """Reports of the release that training runs on."""
    python, root = environment(REFERENCE), tmp_path_factory.mktemp("references")
    return {name: run_probe(python, path, root / name) for name, path in directories.items()}


@pytest.mark.parametrize("release", RELEASES)
def test_release(release, directories, references, tmp_path):
    """The same ids, answers and logits; of a directory that it saves itself, too, when the export is gone."""
    python = environment(release)
    for case, directory in directories.items():
        if release != NEWEST and tuple(map(int, release.split("."))) < CASES.get(case, (None, ()))[1]:
            continue  # transformers didn't have this LLM yet
        report = run_probe(python, directory, tmp_path / case)
        assert report["transformers"].startswith("5." if release == NEWEST else release)
        print(f"transformers {report['transformers']}, {case}: {compare_reports(report, references[case]):.1e}")
        elsewhere = shutil.move(tmp_path / case / "saved", tmp_path / f"{case} elsewhere")
        compare_reports(run_probe(python, elsewhere, tmp_path / f"{case} again"), report)


def test_what_the_newest_saves_opens_in_the_oldest(directories, references, tmp_path):
    """Weights and `config.json`; the tokenizer's files of newer releases are unreadable there, whoever wrote them."""
    for case in ("qwen2", "llama"):
        run_probe(environment(NEWEST), directories[case], tmp_path / case)
        saved = shutil.copytree(directories[case], tmp_path / f"{case} saved")
        for name in ("config.json", "model.safetensors"):
            shutil.copy(tmp_path / case / "saved" / name, saved / name)
        compare_reports(run_probe(environment(RELEASES[0]), saved, tmp_path / f"{case} oldest"), references[case])


def test_a_release_that_cannot_be_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("XTUNER_PLUGINS_VERSIONS", str(tmp_path))
    with pytest.raises(RuntimeError, match="transformers 0.0.999 can't be installed, so it is not tested"):
        environment("0.0.999")
    assert not list(tmp_path.glob("*/installed"))
