"""`xtp`: one command for all tools, in a checkout and after `pip install` of a wheel."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from tests.conftest import ROOT
from xtuner_plugins.cli import xtp


def test_every_tool_is_a_command():
    stems = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert {path.stem for path in xtp.tools().values()} == stems and set(xtp.SHORT.values()) <= stems
    for name, path in xtp.tools().items():
        assert xtp.find_tool(name) == path == xtp.find_tool(path.stem) == xtp.find_tool(path.stem.replace("_", "-"))
        (line,) = (line for line in xtp.overview().splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3, "the tool's docstring begins with what it does"


NEW = ["--base", "models/b", "--data", "a.jsonl", "--images", "images", "--set", "lr=0.25"]
START = "import sys; from xtuner_plugins.cli.xtp import main; sys.exit(main(sys.argv[1:]))"


def test_a_command_has_the_tools_output_and_status():
    def run(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
        return done.returncode, done.stdout, done.stderr

    assert run("-c", START, "configs", "no_such") == run("tools/configs.py", "no_such")


def test_help_takes_no_time():
    """Processor time, which doesn't depend on what else the machine does; a third of a second was measured at most."""
    for words in ([], *([name] for name in xtp.tools())):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", START, *words, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6, words


def test_what_is_no_command(capsys):
    assert (xtp.main([]), xtp.main(["--help"])) == (2, 0) and capsys.readouterr().out.count("xtp COMMAND ...") == 2
    assert xtp.main(["chekc"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'chekc'; did you mean check?\n"
    assert xtp.main(["new-config"]) == 2
    assert capsys.readouterr().err == "error: new-config is now: xtp configs NAME --write FILE\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the tracked files, built as `pip install .` builds it, without network."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if not name.startswith(("tests/", "notebooks/", "benchmarks/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", out, source], check=True, timeout=600)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_all_that_the_code_reads(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in (ROOT / "xtuner_plugins").rglob("*") if path.suffix in (".jinja", ".json", ".css")]
    outside = list((ROOT / "tools").glob("*.py"))
    expected = {path.relative_to(ROOT).as_posix() for path in data}
    expected |= {f"xtuner_plugins/share/{path.relative_to(ROOT).as_posix()}" for path in outside}
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.py")}
    expected |= {f"xtp_configs/{name}" for name in configs}
    assert len(data) > 5 and expected <= held, sorted(expected - held)
    assert not [name for name in held if "tests/" in name or "__pycache__" in name]


@pytest.mark.slow
def test_installed_wheel_works_outside_of_the_checkout(wheel, toy_base, tmp_path):
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "-q", "--target"]
    install = [sys.executable, "-m", "pip", "install", *options, tmp_path / "site", wheel]
    subprocess.run(install, check=True, timeout=600)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "100"}

    def run(*arguments):
        command = [sys.executable, tmp_path / "site" / "bin" / "xtp", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    listed = run("configs", "--family", "toy")
    assert listed.returncode == 0 and "finetune_lora" in listed.stdout, listed.stderr
    printed = run("configs", "finetune_lora")
    assert printed.returncode == 0 and "train_dataloader" in printed.stdout, printed.stderr
    (tmp_path / "my-run").mkdir()
    written = run("configs", "internvl_v3_qwen2_5_1b_lora_finetune", "--write", "my-run/mine.py", *NEW)
    assert written.returncode == 0, written.stderr
    plain = "from mmengine.config import Config; print(Config.fromfile('my-run/mine.py').optim_wrapper.optimizer.lr)"
    read = subprocess.run([sys.executable, "-c", plain], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert read.stdout == "0.25\n", read.stderr
    assert "optim_wrapper = dict" in run("configs", "my-run/mine.py").stdout
    (tmp_path / "images").mkdir()
    Image.effect_noise((112, 112), 90).save(tmp_path / "images" / "a.png")
    words = ("--data", "images", "--prompt", "What?", "--max-new-tokens", "2", "--device", "cpu")
    answered = run("evaluate", toy_base, *words, "--out", "out")
    assert answered.returncode == 0 and (tmp_path / "out" / "items.jsonl").read_text().count("\n") == 1, answered.stderr
