"""Models measured on files, as a user does it: table, files, messages, status."""

import json
import shutil

import pytest
import torch

from tests.weights.training import SETTINGS, make_model, save_pth, write_config
from tools.evaluate import main
from xtuner_plugins.export.card import escaped
from xtuner_plugins.export.export import export
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy.data import write_data

SHORT = ("--device", "cpu", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The options that ask every kind of question of the toy world; the file is one of training records."""
    root = tmp_path_factory.mktemp("toy")
    write_data(root, {"test": 6, "crossing": 3}, workers=1)
    return "--images", root / "images", "--data", root / "test.jsonl"


@pytest.fixture(scope="module")
def trained(toy_base, tmp_path_factory):
    """(config, checkpoint, export) of a LoRA training, disturbed until answers differ from question to question."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "mine.py", toy_base, **SETTINGS["both_loras"])
    torch.manual_seed(0)
    model, random_numbers = make_model(toy_base, **SETTINGS["both_loras"]), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter += torch.randn(parameter.shape, generator=random_numbers) * 0.45
    checkpoint = save_pth(model, folder / "iter_1.pth")
    export(config, checkpoint, folder / "export")
    return config, checkpoint, folder / "export"


def evaluate(*words):
    return main([*map(str, words), *SHORT])


def answers(folder):
    rows = map(json.loads, (folder / "items.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["id"]: row for row in rows if row["dataset"] == "test"}


def test_live_checkpoint_export_and_single_questions_agree(toy, trained, toy_base, tmp_path, capsys):
    """In float32, on all toy questions: from the checkpoint, from its export, in batches, and by `chat` one by one."""
    config, checkpoint, exported = trained
    live, before, after = (tmp_path / name for name in ("live", "before", "after"))
    assert evaluate(config, checkpoint, *toy, "--out", live, "--batch-size", 16) == 0
    assert evaluate(exported, *toy, "text", "--out", after, "--batch-size", 5) == 0
    found = answers(live)
    assert found == answers(after) and len(found) == len(toy[-1].read_text().splitlines())
    session = open_session(exported, device="cpu")
    for row in found.values():
        assert session.answers([(row["question"], row["paths"])], max_new_tokens=8) == [row["answer"]]
    assert len({row["answer"] for row in found.values()}) > len(found) / 2

    assert evaluate(toy_base, *toy, "text", "--limit", 8, "--max-tiles", 1, "--out", before) == 0
    capsys.readouterr()
    card, page, numbers = shutil.copytree(exported, tmp_path / "export"), tmp_path / "c.html", tmp_path / "new/c.json"
    words = ["--compare", before, after, "--html", page, "--json", numbers, "--card", card]
    assert main(list(map(str, words))) == 0
    printed, said = capsys.readouterr().out.splitlines(), json.loads(numbers.read_text())
    assert "differs: preprocessing max_tiles: A 1, B 12" in printed and set(said["datasets"]) == {"test", "text"}
    assert all(f"{name}: {values['sentence']}" in printed for name, values in said["datasets"].items())
    text = (card / "README.md").read_text()
    assert "| text | mentions: accuracy |" in text and f"Before is {escaped(toy_base)}." in text and page.is_file()
    open_session(card, device="cpu")  # the card may change, so the manifest leaves it out
    assert main(list(map(str, ["--compare", after, before, "--card", card]))) == 2
    assert "was measured with other weights; evaluate this export" in capsys.readouterr().err
    assert main(list(map(str, ["--compare", after, before, "--json", before / "results.json"]))) == 2
    assert "results.json is an input, too" in capsys.readouterr().err and found == answers(after)


def test_bad_items_are_named_counted_and_asked_once_they_are_mended(toy, trained, tmp_path, capsys):
    _, images, _, path = toy
    lines, own = path.read_text().splitlines()[:4], tmp_path / "own.jsonl"
    own.write_text("\n".join([*lines, '{"question": "?"}']) + "\n")
    broken = shutil.copytree(images, tmp_path / "images") / json.loads(lines[0])["image"]
    content = broken.read_bytes()
    broken.write_text("no image")
    command = (trained[2], "--data", own, "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert evaluate(*command) == 1
    printed, errors = capsys.readouterr()
    bad = sum(json.loads(line)["image"] in str(broken) for line in lines)
    assert printed.splitlines()[1].split()[-2:] == [str(4 - bad), str(bad + 1)]
    named = [line for line in errors.splitlines() if line.startswith("left out of own: ")]
    assert len(named) == bad + 1 and sum(broken.name in line for line in named) == bad and f"{own}:5" in errors
    broken.write_bytes(content)
    assert evaluate(*command) == 1  # the line without an answer
    assert len((tmp_path / "out" / "items.jsonl").read_text().splitlines()) == 4


def test_wrong_command_lines(toy_base, tmp_path, tool):
    for words, said in (
        (
            f"{toy_base} --data text none.jsonl --out {tmp_path}/out",
            "error: none.jsonl isn't there; correct the path\n",
        ),
        ("model --data a.jsonl", "give MODEL --data FILE --out DIR, or --compare A B"),
        ("model --data a.jsonl --out out --html a.html", "--html, --json and --card go with"),
        ("--compare a b --out out", "--compare takes --html, --json and --card alone"),
    ):
        status, _, error = tool("evaluate", *words.split())
        assert status == 2 and said in error and not (tmp_path / "out").exists()
