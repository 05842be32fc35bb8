"""The checker as a user runs it: a process, its output, its status."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER

ROOT = Path(__file__).resolve().parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def conversation(**extra):
    return {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}], **extra}


@pytest.fixture
def project(toy_base, tmp_path):
    """A config over a jsonl with images; returns (config, annotation file)."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(images / "a.png")
    data = tmp_path / "data.jsonl"
    config = tmp_path / "config.py"
    config.write_text(
        "train_dataloader = dict(dataset=dict(type='xtuner_plugins.datasets.MultimodalDataset', "
        f"base={str(toy_base)!r}, data_paths=[{str(data)!r}], image_folders=[{str(images)!r}]))\n"
    )
    data.write_text("".join(json.dumps(conversation(image="a.png")) + "\n" for _ in range(5)))
    return config, data


def run(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/check_data.py"), *map(str, args)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANGS_AFTER,
    )


def test_good_data_passes(project):
    done = run(project[0])
    assert done.returncode == 0, done.stderr
    assert "all 5 records can be trained on" in done.stdout and "5 images" in done.stdout
    assert "checking" in done.stderr  # the progress bar


def test_every_complaint_has_its_line(project):
    config, data = project
    bad = [conversation(image="none.png"), {"text": 1}, conversation()]
    with data.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in bad)
        file.write("{broken\n")
    done = run(config, "--workers", 0)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    for number in (6, 7, 9):
        assert sum(line.startswith(f"{data}:{number}: ") for line in lines) == 1, done.stdout
    assert "9 records, 3 wrong" in done.stdout and "3 of 9 records can't be trained on" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


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


def test_settings_are_complained_about_in_one_line(project, tmp_path, check):
    config, data = project
    (tmp_path / "broken.py").write_text("a = 1\nb = (\n")
    (tmp_path / "raises.py").write_text("a = 1 / 0\n")
    (tmp_path / "nothing.py").write_text("train_dataloader = None\n")
    for args, words in [
        ((tmp_path / "none.py",), "none.py does not exist"),
        ((tmp_path / "broken.py",), "broken.py:2 cannot be read: SyntaxError: '(' was never closed"),
        ((tmp_path / "raises.py",), "raises.py cannot be read: ZeroDivisionError"),
        ((tmp_path / "nothing.py",), "no train_dataloader.dataset"),
        ((config, "--cfg-options", "train_dataloader.dataset.max_tile=3"), "max_tile"),
        ((config, "--cfg-options", "data_paths=['x.json']"), "data_paths: no key of the runner; write train_"),
        ((config, "--cfg-options", "novalue"), "--cfg-options novalue"),
        (
            (ROOT / "configs/finetune_lora.py", "--cfg-options", "data_paths=[a.jsonl]"),
            "write train_dataloader.dataset.data_paths=..., or --set data_paths=...",
        ),
        ((config, "--cfg-options", "train_dataloader.dataset.type=None.Such"), "None.Such"),
        ((config, "--cfg-options", "train_dataloader.dataset.base=nowhere"), "nowhere"),
        ((data, "--image-folder", tmp_path, "--image-folder", tmp_path), "2 image folders for 1 files"),
        ((data, "--image-folder", tmp_path / "nowhere"), "image folder"),
        ((data, "--base", tmp_path), "config.json"),
        ((data, "--reject-list", data / "x"), "can't be written"),
        ((config, "--html", data / "x"), "can't be written"),
    ]:
        status, printed = check(*args)
        assert status == 2 and words in printed and len(printed.splitlines()) == 1, (args, printed)
        assert printed.startswith("error: "), printed


def test_options_that_do_not_go_together(project, check):
    """Nothing that is asked for is passed over."""
    config, data = project
    for args, words in [
        ((), "required"),
        ((config, data), "a config and other inputs together"),
        ((config, "--base", "x"), "--base goes with annotation files"),
        ((config, "--image-folder", "x"), "--image-folder goes with annotation files"),
        ((data, "--cfg-options", "a=1"), "--cfg-options goes with a config"),
        ((config, "--val", data), "--val goes with annotation files"),
        ((data, "--workers", "-1"), "-1 is less than 0"),
        ((data, "--workers", "two"), "invalid whole_number value"),
        ((data, "--cards", "-1"), "-1 is less than 0"),
        ((data, "--pack-tokens", "0"), "0 is less than 1"),
        ((data, "--serve", "70000"), "70000: give 0 to 65535"),
        ((data, "--serve", "--names-only"), "--names-only opens no record"),
    ]:
        status, printed = check(*args)
        assert status == 2 and words in printed.splitlines()[-1], (args, printed)


def test_every_unusable_file_is_named_at_once(project, tmp_path, check):
    data = project[1]
    (tmp_path / "empty.json").touch()
    (tmp_path / "page.json").write_text("<html>")
    (tmp_path / "cut.json").write_text('[{"a": 1},\n{"a"')
    (tmp_path / "object.json").write_text(json.dumps({"data": [conversation()]}, indent=1))
    names = ["none.json", "empty.json", "page.json", "cut.json", "object.json", "images"]
    for more in ((), ("--base", project[0].read_text().split("base='")[1].split("'")[0])):
        status, printed = check(*(tmp_path / name for name in names), data, *more)
        lines = [1, 1, 1, 2, 1, 1]
        assert status == 2
        assert [text.split(" ")[:2] for text in printed.splitlines()] == [
            ["error:", f"{tmp_path / name}:{line}:"] for name, line in zip(names, lines, strict=True)
        ]


def test_what_cannot_be_opened_is_no_finding(project, tmp_path, check):
    """Status 1 is about records; where none was looked at, it is 2 with `error:`."""
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    data = str(project[1])
    key = "train_dataloader.dataset"
    for args, words in [
        ((tmp_path / "none.jsonl",), "none.jsonl:1: the annotation file can't be read"),
        ((data, "--image-folder", tmp_path / "cut.zip"), "cut.zip"),
        ((project[0], "--cfg-options", f"{key}.storage_options={{'anon': True, 'key': 'x'}}"), "credential"),
        ((data, "--image-folder", "nosuch://bucket/images"), "nosuch"),
    ]:
        status, printed = check(*args, "--workers", 0)
        assert status == 2 and words in printed and len(printed.splitlines()) == 1, (args, printed)
        assert printed.startswith("error: "), printed


def test_a_cache_that_cannot_be_written(project, tmp_path, check, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "file/cache"))
    status, printed = check(project[0], "--workers", 0)
    assert status == 2 and printed.splitlines()[-1].startswith("error: ") and "cache" in printed, printed


def test_a_killed_worker_is_no_finding(project, check, monkeypatch):
    from concurrent.futures import BrokenExecutor

    def check_dataset(*args, **options):
        raise BrokenExecutor

    monkeypatch.setattr("xtuner_plugins.datasets.audit.check.check_dataset", check_dataset)
    status, printed = check(project[0])
    assert status == 2 and "error: a worker was killed, most likely for want of memory" in printed


def test_files_as_editors_and_exports_leave_them(project, tmp_path, check):
    """Byte order mark, Windows line ends, blank lines, an array over many lines, no model: all of it can be read."""
    good = json.dumps(conversation())
    contents = {
        "bom.jsonl": b"\xef\xbb\xbf" + f"{good}\n{good}".encode(),
        "bom.json": b"\xef\xbb\xbf" + f"[{good}, {good}]".encode(),
        "windows.jsonl": f"{good}\r\n\r\n{good}\r\n".encode(),
        "pretty.json": json.dumps([conversation()] * 2, indent=4, ensure_ascii=True).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    status, printed = check(*(tmp_path / name for name in contents), "--workers", 0)
    assert status == 0 and "all 8 records can be trained on" in printed
    (tmp_path / "pretty.json").write_text(json.dumps([conversation(), {"a": 1}, conversation()], indent=1))
    status, printed = check(tmp_path / "pretty.json", "--workers", 0)
    assert status == 1 and printed.startswith(f"{tmp_path / 'pretty.json'}:14: no conversations")


def test_settings_of_a_config_are_named_by_their_own_names(project, check):
    text = project[0].read_text()
    base, images = (re.search(rf"{key}=\[?'([^']+)'", text)[1] for key in ("base", "image_folders"))
    settings = [f"base={base}", f"data_paths={project[1]}", f"image_folders={images}"]
    status, printed = check("toy_finetune_lora", "--set", *settings, "--workers", 0)
    assert status == 0 and "all 5 records can be trained on" in printed, printed
    status, printed = check("toy_finetune_lora", "--set", *settings, "max_length=10", "--workers", 0)
    assert status == 1 and "5 too_long" in printed, printed


def test_validation_data_of_a_config(project, check, tmp_path):
    text = project[0].read_text()
    base, images = (re.search(rf"{key}=\[?'([^']+)'", text)[1] for key in ("base", "image_folders"))
    settings = [
        f"base={base}",
        f"data_paths={project[1]}",
        f"image_folders={images}",
        f"val_image_folders=['{images}']",
    ]
    held_out = tmp_path / "val.jsonl"
    held_out.write_text("".join(json.dumps(conversation(image=name)) + "\n" for name in ("a.png", "none.png")))
    settings.append(f"val_data_paths={held_out}")
    status, printed = check("toy_finetune_lora", "--set", *settings, "--workers", 0)
    assert status == 1 and "all 5 records can be trained on" in printed, printed
    assert "1 of 2 records can't be trained on" in printed.partition("validation data")[2], printed


def test_what_is_shrunk_cut_or_left_out_is_said(project, tmp_path, check):
    """An epoch has the samples that train: repeats count, unusable and rejected records don't."""
    config, data = project
    for name, size in (("a", 112), ("large", 700)):  # one tile, several
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    with data.open("a") as file:
        file.write(json.dumps(conversation(image="large.png")) + "\n")
        long = {"conversations": [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": "word " * 5000}]}
        file.write(json.dumps(long) + "\n")
        file.write(json.dumps(conversation(image="none.png")) + "\n")
    options = ("train_dataloader.dataset.max_length=100", "train_dataloader.dataset.repeat_times=2")
    reject = tmp_path / "reject.jsonl"
    status, printed = check(config, "--workers", 0, "--reject-list", reject, "--cfg-options", *options)
    assert status == 1
    assert "  1 record with fewer tiles, to fit max_length" in printed
    assert f"  1 record with the end cut off, to fit max_length; the first at {data}:7" in printed
    assert "1 of 8 records can't be trained on; an epoch has 14 of 16 samples without them" in printed
    options += (f"train_dataloader.dataset.reject_list={reject}",)
    status, printed = check(
        config, "--workers", 0, "--reject-list", tmp_path / "again.jsonl", "--cfg-options", *options
    )
    assert status == 0 and "  1 record on the reject list" in printed
    assert "all 7 records can be trained on; an epoch has 14 of 16 samples" in printed
    assert len((tmp_path / "again.jsonl").read_text().splitlines()) == 1  # a list that is written anew keeps it


def test_findings_and_page_without_a_model(project, tmp_path, check):
    """Copies and leaks are said, counted in the file of numbers and shown on the page; the status stays 0."""
    _, data = project
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    data.write_text(json.dumps(conversation(image="a.png")) + "\n" + json.dumps(conversation()) + "\n")
    held_out = tmp_path / "val.jsonl"
    held_out.write_text(json.dumps(conversation(image="a.png")) + "\n")
    args = (data, "--image-folder", tmp_path / "images", "--workers", 0)
    val = ("--val", held_out, "--val-image-folder", tmp_path / "images")
    status, printed = check(*args, *val, "--html", page, "--json", numbers)
    assert status == 0 and "1 of 1 validation records that are training records, too (val / data: 1)" in printed
    assert f"page with 3 cards written to {page}" in printed
    found = json.loads(numbers.read_text())
    assert [(each["kind"], each["count"]) for each in found["findings"]][:2] == [
        ("leaked_records", 1),
        ("leaked_images", 1),
    ]
    assert found["findings"][0]["examples"] == [[f"{held_out}:1", f"{data}:1"]]
    assert found["files"][0]["num_records"] == 2 and found["answers"]["frequent"][0]["text"] == "A cat."
    assert "Data check" in page.read_text()
    status, printed = check(*args)
    assert status == 0 and "validation records" not in printed


def test_images_of_benchmarks_that_are_training_images(project, tmp_path, check):
    text = project[0].read_text()
    base, images = (re.search(rf"{key}=\[?'([^']+)'", text)[1] for key in ("base", "image_folders"))
    asked = tmp_path / "own.jsonl"
    lines = [{"image": "a.png", "question": "Is it black?", "answer": "yes"}]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"base={base}", f"data_paths={project[1]}", f"image_folders={images}"]
    settings += [f"val_benchmarks={asked}", f"val_benchmark_images={images}"]
    status, printed = check("toy_finetune_lora", "--set", *settings, "--workers", 0)
    assert status == 0 and "1 of 1 validation records about an image of the training data (own / data: 1)" in printed


def test_names_are_compared_with_the_folder(project, tmp_path):
    """With --names-only no image is opened: this one isn't one."""
    config, data = project
    (tmp_path / "images" / "spare.jpg").write_text("no image")
    found = f"{tmp_path / 'images'}: 2 files; records name 1 different ones, 0 of them missing; 1 superfluous"
    done = run(config, "--names-only")
    assert (done.returncode, found in done.stdout, "superfluous: spare.jpg" in done.stdout) == (0, True, True)
    data.write_text(
        json.dumps(conversation(image="spare.jpg")) + "\n" + json.dumps(conversation(image="none.jpg")) + "\n"
    )
    args = (data, "--image-folder", tmp_path / "images", "--json", tmp_path / "counts.json")
    done = run(*args, "--names-only")
    assert done.returncode == 1 and "1 of them missing" in done.stdout and "missing: none.jpg" in done.stdout
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["files"] == [] and counts["folders"][0]["missing"] == ["none.jpg"]
    assert counts["folders"][0]["superfluous"] == ["a.png"]
    assert run(*args).returncode == 1
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["files"][0]["num_records"], counts["files"][0]["num_unusable"]) == (2, 2)
    assert run(data, "--names-only").returncode == 2
    assert run(*args, "--names-only", "--reject-list", tmp_path / "bad.jsonl").returncode == 2


@pytest.mark.slow
def test_data_in_a_store(project, tmp_path, monkeypatch):
    """The commands of docs/data.md: credentials and address come from the environment."""
    from tests.datasets.store_servers import BUCKET, CREDENTIALS, moto_server, upload

    _, data = project
    lines = [conversation(image="a.png"), conversation(image="none.png")]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "other.png")
    for name, value in {**CREDENTIALS, "XTUNER_PLUGINS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    there = [f"s3://{BUCKET}/data.jsonl", "--image-folder", f"s3://{BUCKET}/images", "--workers", "2"]
    with moto_server() as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        upload(url, tmp_path)
        done = run(*there, "--reject-list", tmp_path / "bad.jsonl")
        denied = run(f"s3://{BUCKET}/none.jsonl")
    assert done.returncode == 1 and "aren't compared" in done.stdout, done.stderr
    missing = f"s3://{BUCKET}/data.jsonl:2: s3://{BUCKET}/images/none.png: no such object; correct"
    assert missing in done.stdout and "1 of 2 records can't be trained on" in done.stdout
    assert json.loads((tmp_path / "bad.jsonl").read_text())["file"] == f"s3://{BUCKET}/data.jsonl"
    assert denied.returncode == 2 and f"error: s3://{BUCKET}/none.jsonl: no such object" in denied.stderr
    assert not any("Traceback" in each.stderr for each in (done, denied))


@pytest.mark.slow
def test_a_store_that_doesnt_answer(project, tmp_path):
    from tests.datasets.store_servers import ObjectServer

    server = ObjectServer()
    config, _ = project
    config.write_text(config.read_text().replace(repr(str(tmp_path / "images")), repr(f"{server.url}/images")))
    server.mode = "500"
    done = run(config, "--workers", "2")
    server.stop()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{server.url}/images/a.png: no answer in" in done.stderr


@pytest.fixture
def served(project, tmp_path):
    """The address of the tool's page over 60 records, one of them broken, and the process."""
    data = project[1]
    texts = [conversation(image="a.png") for _ in range(58)] + [{"a": "</script><b>Broken</b>"}]
    texts.append({"conversations": [{"from": "human", "value": "这是什么？"}, {"from": "gpt", "value": "一只猫。"}]})
    data.write_text("".join(json.dumps(record) + "\n" for record in texts))
    command = [sys.executable, ROOT / "tools/check_data.py", data, "--image-folder", tmp_path / "images", "--serve"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        for line in process.stdout:
            if address := re.fullmatch(r"page with 60 cards at (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops\)\n", line):
                yield address[1], process
                break
        else:
            raise AssertionError(process.stderr.read())
    finally:
        process.kill()
        process.wait()


def test_the_page_is_served_until_ctrl_c(served):
    address, process = served
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read().decode()
    assert "Data check" in page and not re.search(r"(src|href)=['\"]?(?!data:|#)\w", page.partition("const data")[0])
    with urllib.request.urlopen(f"{address}cards?limit=100", timeout=30) as answer:
        assert len(json.load(answer)["cards"]) == 60
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}), timeout=30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS_AFTER)
    assert process.returncode == 0 and "Traceback" not in err, err


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_the_served_page_in_a_browser(served, language):
    playwright = pytest.importorskip("playwright.sync_api")
    address, _ = served
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, locale=language)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda request: errors.append(request.url) if not request.url.startswith((address, "data:")) else None,
        )
        page.goto(address)
        shown, count, expect = page.locator("#list .card"), page.locator("#shown"), playwright.expect
        expect(count).to_have_text("60", use_inner_text=True)
        assert page.locator("h1").inner_text() == {"en-US": "Data check", "zh-CN": "数据检查"}[language]
        assert shown.count() == 24 and page.evaluate("document.documentElement.scrollWidth") == 390
        for number in (48, 60):
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            expect(shown).to_have_count(number)
        widths = page.evaluate("[...document.querySelectorAll('#list img')].map(each => each.naturalWidth)")
        assert len(widths) == 2 * 58 and all(widths)  # each with a thumbnail
        page.fill("#by-text", "一只")
        expect(shown).to_have_count(1)
        expect(count).to_have_text("1", use_inner_text=True)
        page.fill("#by-text", "")
        page.locator("a[data-show=no_conversations]").click()
        expect(shown).to_have_count(1)
        assert "<b>Broken</b>" in shown.inner_text() and page.title() == "Data check"
        page.select_option("#by-reason", "")
        page.select_option("#by-language", "Chinese")
        expect(shown).to_have_count(1)
        page.select_option("#by-language", "")
        page.fill("#from-tiles", "1")
        expect(count).to_have_text("58", use_inner_text=True)
        browser.close()
    assert errors == []
