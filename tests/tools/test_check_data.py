"""The checker as a user runs it: its output, its status."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.small_data import write_dataset


def conversation(**extra):
    return {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}], **extra}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def project(toy_base, tmp_path, monkeypatch):
    """A config over a jsonl with images; returns (config, annotation file)."""
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(images / "a.png")
    data = write(tmp_path / "data.jsonl", *[conversation(image="a.png")] * 5)
    config = tmp_path / "config.py"
    config.write_text(
        "train_dataloader = dict(dataset=dict(type='xtuner_plugins.datasets.MultimodalDataset', "
        f"base={str(toy_base)!r}, data_paths=[{str(data)!r}], image_folders=[{str(images)!r}]))\n"
    )
    return config, data


@pytest.fixture
def check(monkeypatch, capsys):
    """check(*args) -> (status, what was printed): the tool in this process."""
    spec = importlib.util.spec_from_file_location("check_data", ROOT / "tools/check_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, args)])
        try:
            status = tool.main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out if status != 2 else printed.err

    return call


def test_as_a_process(project, run_tool):
    """Good data pass; each complaint has its line; the exit status tells both apart."""
    config, data = project
    done = run_tool("tools/check_data.py", config)
    assert done.returncode == 0 and "checking" in done.stderr, done.stderr  # the progress bar
    assert "all 5 records can be trained on; an epoch has 5 of 5 samples" in done.stdout and "5 images" in done.stdout
    lines = [json.dumps(each) for each in (conversation(image="none.png"), {"text": 1}, conversation())]
    data.write_text(data.read_text() + "\n".join([*lines, "{broken"]))
    done = run_tool("tools/check_data.py", config, "--workers", 0)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    said = [line.split(": ")[0] for line in done.stdout.splitlines() if line.startswith(f"{data}:")]
    assert said == [*(f"{data}:{number}" for number in (6, 7, 9)), str(data)]
    assert "9 records, 3 wrong" in done.stdout and "3 of 9 records can't be trained on" in done.stdout


def test_what_cannot_be_checked_is_said_in_one_line(project, tmp_path, check):
    config, data = project
    (tmp_path / "broken.py").write_text("a = 1\nb = (\n")
    (tmp_path / "nothing.py").write_text("train_dataloader = None\n")
    key = "train_dataloader.dataset"
    for args, words in [
        ((tmp_path / "none.py",), "none.py does not exist"),
        ((tmp_path / "broken.py",), "broken.py:2 cannot be read: SyntaxError: '(' was never closed"),
        ((tmp_path / "nothing.py",), "no train_dataloader.dataset"),
        ((config, "--cfg-options", f"{key}.max_tile=3"), "max_tile"),
        ((config, "--cfg-options", f"{key}.type=None.Such"), "None.Such"),
        ((config, "--cfg-options", f"{key}.base=nowhere"), "nowhere"),
        ((tmp_path / "none.jsonl",), "none.jsonl:1: the annotation file can't be read"),
        ((data, "--image-folder", tmp_path, "--image-folder", tmp_path), "2 image folders for 1 files"),
        ((data, "--image-folder", tmp_path / "nowhere"), "image folder"),
        ((data, "--image-folder", "nosuch://bucket/images"), "nosuch"),
        ((data, "--base", tmp_path), "config.json"),
        ((data, "--reject-list", data / "x"), "can't be written"),
        ((config, "--html", data / "x"), "can't be written"),
    ]:
        status, printed = check(*args, "--workers", 0)
        assert status == 2 and words in printed and len(printed.splitlines()) == 1, (args, printed)
        assert printed.startswith("error: "), printed


def test_options_that_do_not_go_together(project, check):
    """Nothing that is asked for is passed over."""
    config, data = project
    for args, words in [
        ((), "required"),
        ((config, data), "a config and other inputs together"),
        ((config, "--base", "x"), "--base goes with annotation files"),
        ((data, "--cfg-options", "a=1"), "--cfg-options goes with a config"),
        ((data, "--workers", "-1"), "-1: give at least 0"),
        ((data, "--html", "x", "--names-only"), "--names-only opens no record"),
        ((config, "--step", "0"), "--step: 0: give at least 1"),
        ((config, "--step", "1", "--ranks", "2", "--rank", "2"), "--rank 2 counts from 0 to --ranks - 1"),
        ((config, "--seed", "1"), "--seed goes with --step"),
        ((config, "--step", "1", "--names-only"), "--step shows a step of a config, with --html alone"),
        (("toy_finetune_full", "--step", "1", "--checkpoint", "none.pth"), "none.pth"),
    ]:
        status, printed = check(*args)
        assert status == 2 and words in printed.splitlines()[-1], (args, printed)


def test_a_killed_worker_and_a_cache_that_cannot_be_written(project, tmp_path, check, monkeypatch):
    from concurrent.futures import BrokenExecutor

    def check_dataset(*args, **options):
        raise BrokenExecutor

    with monkeypatch.context() as patch:
        patch.setattr("xtuner_plugins.audit.check.check_dataset", check_dataset)
        status, printed = check(project[0])
        assert status == 2 and "error: a worker was killed, most likely for want of memory" in printed
    (tmp_path / "file").touch()
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "file/cache"))
    status, printed = check(project[0], "--workers", 0)
    assert status == 2 and printed.splitlines()[-1].startswith("error: ") and "cache" in printed, printed


@pytest.fixture
def settings(project):
    """The project as settings of a shipped config."""
    text = project[0].read_text()
    base, images = (re.search(rf"{key}=\[?'([^']+)'", text)[1] for key in ("base", "image_folders"))
    return ["--set", f"base={base}", f"data_paths={project[1]}", f"image_folders={images}"]


def test_a_config_with_validation_data_and_benchmarks(project, settings, check, tmp_path):
    config, images = "toy_finetune_lora", tmp_path / "images"
    status, printed = check(config, *settings, "max_length=10", "--workers", 0)
    assert status == 1 and "5 too_long" in printed, printed
    held_out = write(tmp_path / "val.jsonl", conversation(image="a.png"), conversation(image="none.png"))
    more = [f"val_data_paths={held_out}", f"val_image_folders=['{images}']"]
    status, printed = check(config, *settings, *more, "--workers", 0)
    assert status == 1 and "all 5 records can be trained on" in printed, printed
    assert "1 of 2 records can't be trained on" in printed.partition("validation data")[2], printed
    asked = write(tmp_path / "own.jsonl", {"image": "a.png", "question": "Is it black?", "answer": "yes"})
    more = [f"val_benchmarks={asked}", f"val_benchmark_images={images}"]
    status, printed = check(config, *settings, *more, "--workers", 0)
    assert status == 0 and "1 of 1 validation images that are training images, too (own / data: 1)" in printed, printed


def test_what_is_shrunk_cut_or_left_out_is_said(project, tmp_path, check):
    """An epoch has the samples that train: repeats count, unusable and rejected records don't."""
    config, data = project
    for name, size in (("a", 112), ("large", 700)):  # one tile, several
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    long = {"conversations": [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": "word " * 5000}]}
    good = [conversation(image="a.png")] * 5
    write(data, *good, conversation(image="large.png"), long, conversation(image="none.png"))
    options = ("train_dataloader.dataset.max_length=100", "train_dataloader.dataset.repeat_times=2")
    reject = tmp_path / "reject.jsonl"
    status, printed = check(config, "--workers", 0, "--reject-list", reject, "--cfg-options", *options)
    assert status == 1 and "  1 record with fewer tiles, to fit max_length" in printed
    assert "  1 record with the end cut off, to fit max_length" in printed
    assert "1 of 8 records can't be trained on; an epoch has 14 of 16 samples without them" in printed
    options += (f"train_dataloader.dataset.reject_list={reject}",)
    status, printed = check(config, "--workers", 0, "--cfg-options", *options)
    assert status == 0 and "  1 record on the reject list" in printed
    assert "all 7 records can be trained on; an epoch has 14 of 16 samples" in printed


def test_the_plan_counts_what_was_checked(project, settings, check, run_tool):
    """`plan` finds the lengths of the check, and sends nobody to it."""
    assert check("toy_finetune_lora", *settings, "--workers", 0)[0] == 0
    done = run_tool("tools/plan.py", "toy_finetune_lora", *settings)
    assert done.returncode == 0 and "lengths measured: 5 samples" in done.stdout, done.stdout + done.stderr
    assert "check_data" not in done.stdout


def test_findings_page_and_numbers_without_a_model(project, tmp_path, check):
    """Copies and leaks are said, counted in the file of numbers and shown on the page; the status stays 0."""
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    data = write(project[1], conversation(image="a.png"), conversation())
    held_out = write(tmp_path / "val.jsonl", conversation(image="a.png"))
    args = (data, "--image-folder", tmp_path / "images", "--workers", 0)
    val = ("--val", held_out, "--val-image-folder", tmp_path / "images")
    status, printed = check(*args, *val, "--html", page, "--json", numbers)
    assert status == 0 and "1 of 1 validation records that are training records, too (val / data: 1)" in printed
    assert f"page with 3 cards written to {page}" in printed and "Data check" in page.read_text()
    found = json.loads(numbers.read_text())["findings"]
    assert [(each["kind"], each["count"]) for each in found][:2] == [("leaked_records", 1), ("leaked_images", 1)]
    assert found[0]["examples"] == [[f"{held_out}:1", f"{data}:1"]]
    status, printed = check(*args)
    assert status == 0 and "validation" not in printed


def test_names_are_compared_with_the_folder(project, tmp_path, check):
    """With --names-only no image is opened: this one isn't one."""
    config, data = project
    (tmp_path / "images/spare.jpg").write_text("no image")
    status, printed = check(config, "--names-only")
    counts = f"{tmp_path / 'images'}: 2 files; records name 1 different ones, 0 of them missing; 1 superfluous"
    assert status == 0 and counts in printed and "superfluous: spare.jpg" in printed
    write(data, conversation(image="spare.jpg"), conversation(image="none.jpg"))
    args = (data, "--image-folder", tmp_path / "images", "--json", tmp_path / "counts.json")
    status, printed = check(*args, "--names-only")
    assert status == 1 and "1 of them missing" in printed and "missing: none.jpg" in printed
    (folder,) = json.loads((tmp_path / "counts.json").read_text())["folders"]
    assert folder["missing"] == ["none.jpg"] and folder["superfluous"] == ["a.png"]
    assert check(data, "--names-only")[0] == 2


def test_a_step_of_a_shipped_recipe(check, toy_base, tmp_path):
    """What it shows is tested in tests/engine/run/test_step_batches.py."""
    data, images = write_dataset(tmp_path / "data", 12)
    settings = ("--set", f"base={toy_base}", f"data_paths={data}", f"image_folders={images}", "batch_size=4")
    page = tmp_path / "step.html"
    status, printed = check("toy_finetune_full", *settings, "--step", 1, "--ranks", 2, "--rank", 1, "--html", page)
    assert status == 0 and "; rank 1 of 2" in printed and "micro-batch 1 of" in printed, printed
    assert printed.count(f"{data}:") >= 4 and "Step 1" in page.read_text()
    status, printed = check("toy_finetune_full", *settings, "--step", 9999)
    assert status == 2 and "there is no step 9,999" in printed and len(printed.splitlines()) == 1
