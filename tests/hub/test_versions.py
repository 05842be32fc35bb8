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

from .cases import LLMS, RMS_VISION, VISION, make_config, make_model, make_tokenizer, write_directory
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
    "qwen2": (VISION, "qwen2", (4, 37)),
    "llama": (RMS_VISION, "llama", (4, 37)),
    "phi3": (VISION, "phi3", (4, 41)),
    "qwen3": (RMS_VISION, "qwen3", (4, 51)),
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
    python_version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    folder = root / f"{python_version}-{'newest' if release == NEWEST else release}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        run([sys.executable, "-m", "venv", "--without-pip", "--clear", folder], release)
    # Also where it is there: another checkout, which may be gone, may have made it.
    own = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (own / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    if done.exists() and release != NEWEST:
        return python
    specifier = release if release == NEWEST else f"=={release}"
    # What is the newest has to be asked each time.
    run([python, "-m", "pip", "install", "--quiet", "--upgrade", f"transformers{specifier}"], release)
    done.touch()
    return python


def run(command, release):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=HANGS_AFTER)
    if done.returncode:
        raise RuntimeError(
            f"transformers {release} can't be installed, so it is not tested: {' '.join(map(str, command))}\n"
            f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )


def version_in(python):
    """Major and minor version of transformers that this interpreter imports."""
    code = "import transformers; print(transformers.__version__)"
    text = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return text.strip(), tuple(int(part) for part in text.split(".")[:2])


@pytest.fixture(scope="module")
def directories(tmp_path_factory, toy_base, toy_parts):
    """One exported directory a case."""
    root = tmp_path_factory.mktemp("exports")
    tokenizer = make_tokenizer(root / "tokenizer")
    made = {}
    for name, (vision, llm, _) in CASES.items():
        model = make_model(make_config(vision, LLMS[llm], vocab_size=len(tokenizer)))
        made[name] = write_directory(root / name, model, root / "tokenizer")
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
@pytest.mark.parametrize("case", [*CASES, "assembled", *ASSEMBLED])
def test_release(release, case, directories, references, tmp_path, record_property):
    python = environment(release)
    version, number = version_in(python)
    if release == NEWEST:
        assert number[0] == 5
    else:
        assert version == release
    if case in CASES and number < CASES[case][2]:
        pytest.skip(f"transformers {version} has no {CASES[case][1]}")
    report = run_probe(python, directories[case], tmp_path / "probe")
    assert report["transformers"] == version
    difference = compare_reports(report, references[case])
    record_property("logits_difference", difference)
    print(f"transformers {version}, {case}: logits differ by {difference:.1e}")


@pytest.mark.parametrize("case", ["qwen2", "llama"])
def test_what_the_newest_saves_opens_in_the_oldest(case, directories, references, tmp_path):
    """Weights and `config.json`; the tokenizer's files of newer releases are unreadable there, whoever wrote them."""
    run_probe(environment(NEWEST), directories[case], tmp_path / "newest")
    saved = tmp_path / "saved"
    shutil.copytree(directories[case], saved)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "newest" / "saved" / name, saved / name)
    compare_reports(run_probe(environment(RELEASES[0]), saved, tmp_path / "oldest"), references[case])


def test_a_failing_probe_is_reported(directories, tmp_path):
    broken = write_broken(directories["qwen2"], tmp_path / "broken")
    with pytest.raises(AssertionError, match="conversation.py"):
        run_probe(environment(REFERENCE), broken, tmp_path / "probe")


def write_broken(directory, path):
    """A copy of an export that lacks one of its code files."""
    shutil.copytree(directory, path)
    (path / "conversation.py").unlink()
    return path


def test_a_release_that_cannot_be_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("XTUNER_PLUGINS_VERSIONS", str(tmp_path))
    with pytest.raises(RuntimeError, match="transformers 0.0.999 can't be installed, so it is not tested"):
        environment("0.0.999")
    assert not list(tmp_path.glob("*/installed"))
