"""An exported directory opened where this project is out of reach, under every transformers release that it promises.

Each release has an environment of its own (release tier). It borrows torch and everything else that fits from the
running interpreter, through a `.pth` file, and adds only the release of transformers and what that one needs in other
versions: some 100 MB each instead of 5 GB. They are kept in `XTUNER_PLUGINS_VERSIONS` (default
`~/.cache/xtuner_plugins/transformers`) and reused. A release that can't be installed is an error, never a skip.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import transformers

from tests.conftest import HANGS_AFTER
from tests.vision_towers import write_tower
from tests.weights.language_models import write_llm
from xtuner_plugins import hub
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import prepare_conversion
from xtuner_plugins.inference import verify
from xtuner_plugins.toy.models import write_random_parts

PROBE = Path(__file__).with_name("version_probe.py")
NEWEST = ">=5,<6"
RELEASES = ("4.37.2", "4.44.2", "4.49.0", "4.57.6", "5.0.0", NEWEST)
# Where transformers got each LLM; the vision tower alternates, so that both kinds meet every release. InternLM2 and the
# first Qwen are read from their own layouts and vocabularies; they run as Llama and Qwen2.
CASES = {
    "qwen2": ("300M", (4, 37)),
    "llama": ("6B", (4, 37)),
    "phi3": ("300M", (4, 41)),
    "qwen3": ("6B", (4, 51)),
    "internlm2": ("clip", (4, 37)),
    "qwen": ("siglip", (4, 37)),
}


def run_probe(python, directory, work_dir):
    """Runs `version_probe.py` on a directory, by an interpreter in an empty folder without network."""
    work_dir.mkdir(parents=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    env |= dict(HF_HOME=str(work_dir / "hf"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    command = [str(python), str(PROBE), str(directory), str(work_dir)]
    done = subprocess.run(command, cwd=work_dir, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout.split()[-1]


def test_opens_and_chats_without_this_project(toy_base, tmp_path):
    assert run_probe(sys.executable, toy_base, tmp_path / "probe") == transformers.__version__


def test_files_import_nothing_but_torch_and_transformers():
    """And each other, by the flat names that `trust_remote_code` can fetch."""
    allowed = r"(__future__|copy|dataclasses|inspect|re|torch|transformers)\b|\.[a-z]\w* "
    for path in set(Path(hub.__file__).parent.glob("*.py")):
        for words in re.findall(r"^\s*(?:from|import) (.*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.match(allowed, words), (path, words)


@functools.cache
def environment(release):
    """The interpreter of the environment of a release, made when it isn't there yet.

    Raises:
        RuntimeError: It can't be made; the message holds what the installer said.
    """
    root = Path(os.environ.get("XTUNER_PLUGINS_VERSIONS", "~/.cache/xtuner_plugins/transformers")).expanduser()
    python_version, is_newest = "{}.{}".format(*sys.version_info), release == NEWEST
    folder = root / f"py{python_version.replace('.', '')}-{'newest' if is_newest else release}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    # Also where it is there: another checkout, which may be gone, may have made it.
    own = folder / "lib" / f"python{python_version}" / "site-packages"
    (own / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    wanted = ["--upgrade", f"transformers{release}"] if is_newest else [f"transformers=={release}"]
    command = [python, "-m", "pip", "install", "--quiet", *wanted]  # nothing is fetched for a release that is there
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER)
    if ran.returncode:
        raise RuntimeError(f"transformers {release} can't be installed, so it is not tested: {ran.stderr[-4000:]}")
    return python


@pytest.fixture(scope="module")
def directories(tmp_path_factory, toy_parts):
    """One exported directory a case."""
    root, llm = tmp_path_factory.mktemp("exports"), toy_parts[1]
    large = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)
    towers = {"300M": toy_parts[0], "6B": write_random_parts(root / "6B", vision_overrides=large)[0]}
    for kind in ("clip", "siglip"):
        write_tower(root / kind, kind)
        towers[kind] = root / kind
    for name, (tower, _) in CASES.items():
        own = tower in ("clip", "siglip")  # beside them stand vocabularies of other formats
        part = llm if name == "qwen2" else write_llm(name, root / f"{name}-llm", llm, own_vocabulary=own)
        template = "internlm2-chat" if name == "internlm2" else "internvl2_5"
        build_base(towers[tower], part, root / name, template=template, dtype="float32")
    return {name: root / name for name in CASES}


@pytest.mark.release
@pytest.mark.xdist_group("releases of transformers")  # one process makes the environments
@pytest.mark.parametrize("release", RELEASES)
def test_release(release, directories, tmp_path, monkeypatch):
    """Prompts, stop tokens and logits are those of our own code; and `version_probe.py` tells what else must hold.

    A directory that a release saves itself opens too, when the export is gone; that of the newest also in the oldest:
    its weights and `config.json`, for the tokenizer's files of newer releases are unreadable there, whoever wrote them.
    """
    python = environment(release)
    monkeypatch.setattr(verify.sys, "executable", str(python))
    for case, directory in directories.items():
        if release != NEWEST and tuple(map(int, release.split("."))) < CASES[case][1]:
            continue  # transformers didn't have this LLM yet
        work = tmp_path / f"{case} verified"
        work.mkdir()
        asked = verify.ask(prepare_conversion(directory, format="official"), work)
        gaps = verify.compare_opened(asked, directory, work)
        version = run_probe(python, directory, tmp_path / case)
        assert version.startswith("5." if release == NEWEST else release)
        print(f"transformers {version}, {case}: logits differ by {max(gaps):.1e}")
        elsewhere = shutil.move(tmp_path / case / "saved", tmp_path / f"{case} elsewhere")
        run_probe(python, elsewhere, tmp_path / f"{case} again")
        if release == NEWEST and case in ("qwen2", "llama"):
            saved = shutil.copytree(directory, tmp_path / f"{case} saved")
            for name in ("config.json", "model.safetensors"):
                shutil.copy(Path(elsewhere) / name, saved / name)
            run_probe(environment(RELEASES[0]), saved, tmp_path / f"{case} oldest")
