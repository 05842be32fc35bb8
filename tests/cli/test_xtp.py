"""`xtp`: one command for all tools, in a checkout and after `pip install` of a wheel."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, XTP
from xtuner_plugins.cli import xtp


def test_every_tool_is_a_command():
    stems = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert {path.stem for path in xtp.tools().values()} == stems and set(xtp.SHORT.values()) <= stems
    for name, path in xtp.tools().items():
        assert xtp.find_tool(name) == path == xtp.find_tool(path.stem) == xtp.find_tool(path.stem.replace("_", "-"))
        (line,) = (line for line in xtp.overview().splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3, "the tool's docstring begins with what it does"


def test_a_command_has_the_tools_output_and_status(run_tool):
    ours, theirs = (run_tool(*command, "no_such") for command in (("-c", XTP, "configs"), ("tools/configs.py",)))
    assert (ours.returncode, ours.stdout, ours.stderr) == (2, "", theirs.stderr) and "no_such" in theirs.stderr


def test_what_is_no_command(capsys):
    assert (xtp.main([]), xtp.main(["--help"])) == (2, 0) and capsys.readouterr().out.count("xtp COMMAND ...") == 2
    for word, says in (
        ("chekc", "there is no command 'chekc'; did you mean check?"),
        ("new-config", "new-config is now: xtp configs NAME --write FILE"),
    ):
        assert xtp.main([word]) == 2 and capsys.readouterr().err == f"error: {says}\n"
    gone = "compare_engines convert_to_gguf extract measure_lengths selftest serve write_vlmevalkit_config"
    for name in gone.split():
        assert xtp.main([name]) == 2 and f"error: {name} is now: " in capsys.readouterr().err
    told = " ".join(xtp.OLD.values())
    assert {name for name in re.findall(r"xtp (\w+)", told)} <= {*xtp.tools(), *xtp.SHORT.values()}


@pytest.fixture(scope="module")
def site(tmp_path_factory, run_tool):
    """A directory with a wheel of the tracked files, built and installed as `pip install .` does, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if not name.startswith(("tests/", "notebooks/", "benchmarks/")) and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    for words in (
        ("wheel", "--no-build-isolation", "-w", folder, folder / "source"),
        ("install", "--no-compile", "--target", folder / "site", "--find-links", folder, "xtuner-plugins"),
    ):
        done = run_tool("-m", "pip", *words[:1], *options, *words[1:])
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_an_installed_wheel_holds_all_that_is_read_and_works_elsewhere(site, toy_base, tmp_path, run_tool):
    read = [path for path in (ROOT / "xtuner_plugins").rglob("*") if path.suffix in (".jinja", ".json", ".css")]
    expected = {path.relative_to(ROOT) for path in read}
    expected |= {Path("xtuner_plugins/share", path.relative_to(ROOT)) for path in (ROOT / "tools").glob("*.py")}
    expected |= {Path("xtp_configs", path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.py")}
    held = {path.relative_to(site) for path in site.rglob("*")}
    assert len(read) > 5 and expected <= held, sorted(expected - held)
    assert not [path for path in held if {"tests", "__pycache__"} & {*path.parts}]

    def run(*words):
        done = run_tool(site / "bin" / "xtp", *words, cwd=tmp_path, env={"PYTHONPATH": str(site)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "finetune_lora" in run("configs", "--family", "toy")
    leaf, data = "internvl_v3_qwen2_5_1b_lora_finetune", ("--data", "a.jsonl", "--images", "images")
    run("configs", leaf, "--write", "my-run/mine.py", "--base", "models/b", *data, "--set", "lr=0.25")
    plain = "from mmengine.config import Config; print(Config.fromfile('my-run/mine.py').optim_wrapper.optimizer.lr)"
    read = run_tool("-c", plain, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert read.stdout == "0.25\n", read.stderr
    assert "optim_wrapper = dict" in run("configs", "my-run/mine.py")
    (tmp_path / "images").mkdir()
    Image.effect_noise((112, 112), 90).save(tmp_path / "images" / "a.png")
    words = ("--data", "images", "--prompt", "What?", "--max-new-tokens", "2", "--device", "cpu")
    run("evaluate", toy_base, *words, "--out", "out")
    assert (tmp_path / "out" / "items.jsonl").read_text().count("\n") == 1
