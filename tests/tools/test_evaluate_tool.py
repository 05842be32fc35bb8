"""Models measured on files, as a user does it: table, files, messages, status; stopped runs go on."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import HANGS_AFTER, ROOT
from tests.weights.training import SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.export.card import escaped
from xtuner_plugins.export.export import export
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy.data import write_data

spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools/evaluate.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
SHORT = ("--device", "cpu", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(file of one's own questions, its images): every kind of question of the toy world."""
    root = tmp_path_factory.mktemp("toy")
    write_data(root, {"test": 6, "crossing": 3}, workers=1)
    path = root / "held_out.jsonl"
    with path.open("w") as file:
        for record in map(json.loads, (root / "test.jsonl").read_text().splitlines()):
            question, answer = (message["value"] for message in record["conversations"])
            row = {"id": record["id"], "image": record["image"], "question": question, "answer": answer}
            file.write(json.dumps({**row, "category": record["kind"]}) + "\n")
    return path, root / "images"


@pytest.fixture(scope="module")
def trained(toy_base, tmp_path_factory):
    """(config, checkpoint, export) of a LoRA training, disturbed until answers differ from question to question."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "mine.py", toy_base, **SETTINGS["both_loras"])
    torch.manual_seed(0)
    model, random_numbers = make_model(toy_base, **SETTINGS["both_loras"]), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=random_numbers) * 0.45
    checkpoint = save_pth(model, folder / "iter_1.pth")
    export(config, checkpoint, folder / "export")
    return config, checkpoint, folder / "export"


def evaluate(*words):
    return tool.main([*map(str, words), *SHORT])


def rows(folder, name="items.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def answers(folder):
    return {row["id"]: row["answer"] for row in rows(folder)}


def test_live_checkpoint_export_and_single_questions_agree(toy, trained, tmp_path, capsys):
    """In float32, on all toy questions: from the checkpoint, from its export, in batches, and by `chat` one by one."""
    path, images = toy
    config, checkpoint, exported = trained
    data = ("--data", path, "--images", images)
    assert evaluate(config, checkpoint, *data, "--out", tmp_path / "live", "--batch-size", 16) == 0
    assert evaluate(exported, *data, "--out", tmp_path / "export", "--batch-size", 5) == 0
    found = answers(tmp_path / "live")
    assert found == answers(tmp_path / "export") and len(found) == len(path.read_text().splitlines())
    session, single = open_session(exported, device="cpu"), {}
    for row in rows(tmp_path / "live"):
        single[row["id"]] = session.answers([(row["question"], row["paths"])], max_new_tokens=8)[0]
    assert found == single and len(set(single.values())) > len(single) / 2
    printed = capsys.readouterr().out
    assert (
        printed.splitlines()[1].split()[:3] == ["held_out", "exact_match:", "accuracy"] and "  number across" in printed
    )
    results = json.loads((tmp_path / "live" / "results.json").read_text())
    assert results["model"]["model"] == str(checkpoint) and results["preprocessing"]["max_tiles"] == 12
    assert results["datasets"]["held_out"]["num_answered"] == len(single)
    assert (tmp_path / "live" / "report.html").stat().st_size > 1000


def test_bad_items_are_named_counted_and_asked_once_they_are_mended(toy, trained, tmp_path, capsys):
    path, images = toy
    lines = path.read_text().splitlines()[:4]
    shutil.copytree(images, tmp_path / "images")
    broken = json.loads(lines[0])["image"]
    content = (tmp_path / "images" / broken).read_bytes()
    (tmp_path / "images" / broken).write_text("no image")
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join([*lines, '{"question": "?"}']) + "\n")
    command = (trained[2], "--data", own, "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert evaluate(*command) == 1
    printed, errors = capsys.readouterr()
    bad = sum(broken in line for line in lines)
    assert printed.splitlines()[1].split()[-2:] == [str(4 - bad), str(bad + 1)]
    named = [line for line in errors.splitlines() if line.startswith("left out of own: ")]
    assert len(named) == bad + 1 and sum(broken in line for line in named) == bad and f"{own}:5" in errors
    said = json.loads((tmp_path / "out" / "results.json").read_text())["datasets"]["own"]
    assert said["num_left_out"] == bad + 1 == len(said["left_out"])

    (tmp_path / "images" / broken).write_bytes(content)
    assert evaluate(*command) == 1  # the line without an answer
    assert sorted(answers(tmp_path / "out")) == sorted(json.loads(line)["id"] for line in lines)


def test_wrong_command_lines(toy_base, tmp_path, capsys):
    assert evaluate(toy_base, "--data", "text", "none.jsonl", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == "error: none.jsonl isn't there; correct the path\n"
    asks = ["model", "--data", "a.jsonl", "--out", "out"]
    for words, said in (
        ([*asks, "--limit", "0"], "--limit: 0: give at least 1"),
        (asks[:3], "give MODEL --data FILE --out DIR, or --compare A B"),
        (["model", "--compare", "a", "b"], "give MODEL"),
        ([*asks, "--html", "a.html"], "--html, --json and --card go with --compare"),
        (["--compare", "a", "b", "--out", "out"], "--compare takes --html, --json and --card alone"),
    ):
        with pytest.raises(SystemExit, match="2"):
            tool.parse_args(words)
        assert said in capsys.readouterr().err


def test_two_results_are_compared(toy, trained, toy_base, tmp_path, capsys):
    path, images = toy
    for name, model, tiles in (("a", toy_base, 1), ("b", trained[2], 2)):
        words = ("--data", path, "text", "--images", images, "--limit", 8, "--max-tiles", tiles)
        assert evaluate(model, *words, "--out", tmp_path / name) == 0
    capsys.readouterr()
    exported = shutil.copytree(trained[2], tmp_path / "export")
    files = ["--html", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json"), "--card", str(exported)]
    assert tool.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b"), *files]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[0] == "held_out" and "differs: preprocessing max_tiles: A 1, B 2" in printed
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["datasets"]["held_out"]["num_common"] >= 8 and found["a"]["model"] == str(toy_base)
    assert set(found["datasets"]) == {"held_out", "text"}
    for name, values in found["datasets"].items():
        assert values["verdict"] in ("better", "equal", "worse") and f"{name}: {values['sentence']}" in printed
    assert "held_out" in (tmp_path / "c.html").read_text(encoding="utf-8")
    card = (exported / "README.md").read_text()
    assert "| text | mentions: accuracy |" in card and f"Before is {escaped(toy_base)}." in card
    open_session(exported, device="cpu")  # the card may change, so the manifest leaves it out
    capsys.readouterr()
    assert tool.main(["--compare", str(tmp_path / "b"), str(tmp_path / "a"), "--card", str(exported)]) == 2
    assert "was measured with other weights; evaluate this export" in capsys.readouterr().err
    assert tool.main(["--compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no results.json")


@pytest.mark.slow
def test_killed_at_any_moment(toy, trained, tmp_path, kills=3):
    """Each run is killed after some more answers than the last; what remains is complete, without doubles."""
    path, images = toy
    out = tmp_path / "out" / "answers.jsonl"
    command = [sys.executable, str(ROOT / "tools/evaluate.py"), trained[2], "--data", path, "--images", images]
    command += ["--out", out.parent, "--batch-size", "1", "--processes", "2", *SHORT]
    number, random_moment = len(path.read_text().splitlines()), random.Random(2)

    def count():
        return out.read_bytes().count(b"\n") if out.is_file() else 0

    killed = 0
    for moment in range(kills):
        running = subprocess.Popen(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"})
        wanted, deadline = count() + 1 + moment % 3, time.monotonic() + HANGS_AFTER
        while moment and count() < wanted and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random_moment.random() * 0.05)
        killed += running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.wait()
        if moment == kills // 2:  # as a kill in the middle of writing a line leaves it
            out.write_bytes(out.read_bytes()[:-7])
    assert killed == kills and 1 < count() < number
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0, done.stderr
    named = [row["id"].partition("/")[2] for row in rows(out.parent, "answers.jsonl")]
    assert len(named) == len(set(named)) == number
    whole = tmp_path / "undisturbed"
    assert evaluate(trained[2], "--data", path, "--images", images, "--out", whole) == 0
    assert answers(out.parent) == answers(whole)
