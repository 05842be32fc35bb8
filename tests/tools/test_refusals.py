"""A tool says at once how it is used and what is wrong: nothing large is imported for that."""

import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
LARGE = ("deepspeed", "peft", "torch", "torchvision", "transformers", "xtuner")
# Runs a tool in a process of its own, and prints at its end which large libraries it has imported.
PROBE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *[name for name in {LARGE!r} if name in sys.modules], file=sys.stderr)
"""


def run(tool, *words, cwd=ROOT):
    """(exit status, lines of stderr, large libraries that were imported)."""
    command = [sys.executable, "-c", PROBE, str(ROOT / "tools" / tool), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANGS_AFTER)
    lines = done.stderr.splitlines()
    assert lines and lines[-1].startswith("imported:"), done.stderr
    return done.returncode, lines[:-1], lines[-1].split()[1:]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_nothing_large(tool):
    status, _, imported = run(tool, "--help")
    assert (status, imported) == (0, [])


LEAF = "toy_finetune_lora"
READY = ("base={base}", "data_paths={data}", "image_folders={empty}")
TEXT_ALONE = [
    ("train.py", ["no_such"], "config no_such does not exist"),
    ("train.py", ["toy_finetune_lorra"], "did you mean toy_finetune_lora"),
    ("train.py", [LEAF], "model.base='work_dirs/quickstart/pretrain_mlp': no such directory"),
    ("train.py", [LEAF, "--set", "max_tile=3"], "did you mean max_tiles"),
    ("train.py", [LEAF, "--set", "max_epochs=0", *READY], "max_epochs=0 is no length of a run"),
    ("train.py", [LEAF, "--set", "train_cfg.max_iters=3"], "use --cfg-options train_cfg.max_iters=3"),
    ("train.py", [LEAF, "--set", "base={empty}"], "holds no config.json"),
    ("train.py", [LEAF, "--set", "base={untold}"], "holds no tokenizer"),
    ("train.py", [LEAF, "--set", "base={base}", "data_paths=none.jsonl"], "file none.jsonl does not exist"),
    ("train.py", [LEAF, "--cfg-options", "lr=1"], "set optim_wrapper.optimizer.lr instead, or start with --set lr="),
    ("train.py", [LEAF, "--cfg-options", "modle.base=1"], "did you mean 'model'"),
    ("train.py", [LEAF, "--deepspeed", "zero3"], "did you mean deepspeed_zero3"),
    ("train.py", [LEAF, "--resume", "none.pth"], "none.pth does not exist; no whole checkpoint is beside it"),
    ("check_data.py", ["toy_finetune_lorra"], "did you mean toy_finetune_lora"),
    ("check_data.py", [LEAF], "model directory 'work_dirs/quickstart/pretrain_mlp' isn't there"),
    ("check_data.py", [LEAF, "--set", "max_tile=3"], "did you mean max_tiles"),
    ("check_data.py", [LEAF, "--cfg-options", "lr=1"], "set optim_wrapper.optimizer.lr instead"),
    ("convert_to_official.py", ["no_such", "a", "b"], "config no_such does not exist"),
    ("convert_to_official.py", [LEAF, "a", "b", "--set", "max_tile=3"], "did you mean max_tiles"),
    ("print_config.py", ["no_such"], "config no_such does not exist"),
    ("print_config.py", [LEAF, "--set", "max_tile=3"], "did you mean max_tiles"),
    ("list_configs.py", ["--family", "no_such"], "families: "),
    ("new_config.py", ["no_such", "out.py", "--base", "b", "--data", "d", "--images", "i"], "config no_such does not"),
]


@pytest.fixture(scope="module")
def places(toy_base, tmp_path_factory):
    """What stands for {base} and the others above."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "untold").mkdir()
    (folder / "untold" / "config.json").write_text("{}")
    (folder / "data.jsonl").write_text("")
    return {"base": toy_base, **{name: folder / name for name in ("empty", "untold")}, "data": folder / "data.jsonl"}


@pytest.mark.parametrize("tool, words, message", TEXT_ALONE, ids=[f"{t}-{m}" for t, _, m in TEXT_ALONE])
def test_what_the_text_tells_is_refused_before_anything_large_is_imported(tool, words, message, places, tmp_path):
    words = [word.format(**places) for word in words]
    status, lines, imported = run(tool, *words, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert imported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "pair, message, most",
    [
        ("lr=abc", "optim_wrapper.optimizer.lr='abc': AdamW wants a valid number", {"torch", "transformers"}),
        ("max_tiles=200", "max_tiles=200 means images of", {"torch", "transformers"}),
        ("lr=-1", "Invalid learning rate: -1", {"torch", "transformers"}),
        ("batch_size=0", "batch_size should be a positive integer", {"torch", "transformers"}),
    ],
)
def test_values_are_refused_without_the_runner(pair, message, most, places, tmp_path):
    """Neither MMEngine's runner (DeepSpeed) nor PEFT nor torchvision is imported to say so."""
    settings = [word.format(**places) for word in (*READY, pair)]
    status, lines, imported = run("train.py", LEAF, "--set", *settings, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and message in lines[0], lines
    assert set(imported) <= most


MISSING = [
    ("convert_to_official.py", ["{leaf}", "a.pth", "out", "--set", "base=none"]),
    ("convert_to_official.py", ["--from", "none", "out"]),
    ("build_base_model.py", ["--vision", "none", "--llm", "none", "--out", "out"]),
    ("extract.py", ["none", "llm", "out"]),
    ("chat.py", ["none", "--question", "What?"]),
    ("check_data.py", ["none.jsonl"]),
]


@pytest.mark.parametrize("tool, words", MISSING, ids=[f"{tool}-{words[0]}" for tool, words in MISSING])
def test_a_missing_directory_is_refused_with_pytorch_alone(tool, words, tmp_path):
    status, _, imported = run(tool, *(word.format(leaf=LEAF) for word in words), cwd=tmp_path)
    assert (status, imported) == (1, ["torch"])
