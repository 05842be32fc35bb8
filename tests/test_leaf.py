"""A leaf's text: its labels, its Settings with other values, and the whole of it in one file."""

import ast
import subprocess
import sys

import pytest

from tests.configs.test_configs import LEAVES, name, split_leaf
from tests.conftest import ROOT
from xtuner_plugins.config_file import ConfigError, read_config
from xtuner_plugins.leaf import LABELS, Leaf, literal

LORA = ROOT / "configs/finetune_lora.py"


def test_settings_and_labels_of_every_leaf():
    for path in LEAVES:
        leaf = Leaf.read(path)
        assert list(leaf.settings) == split_leaf(path)[1], name(path)
        assert {"trains", "frozen", "starts from", "data", "hardware", "launch"} <= set(leaf.labels) <= set(LABELS)
        assert path.stem in leaf.labels["launch"]


def test_standalone_is_the_same_config(tmp_path):
    for path in LEAVES:
        copy = tmp_path / path.name
        copy.write_text(Leaf.read(path).standalone())
        assert "read_base" not in copy.read_text()
        alone, taken_in = read_config(str(copy)), read_config(str(path))
        assert alone.to_dict() == taken_in.to_dict(), name(path)
        copy.write_text(Leaf.read(path).standalone(in_checkout=False))
    for words in (["check", "--ignore", "D"], ["format", "--check"]):  # docstrings of configs are free, here as there
        command = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout


def test_standalone_of_a_standalone_is_itself():
    text = Leaf.read(LORA).standalone()
    assert Leaf(LORA, text).standalone() == text


@pytest.mark.parametrize(
    "pair, value",
    [
        ("lr=5e-5", 5e-5),
        ("max_tiles=6", 6),
        ("base=models/x", "models/x"),
        ("base='models/a b'", "models/a b"),
        ("base=models/a,b", "models/a,b"),
        ("dtype=None", None),
        ("data_paths=['a.jsonl']", ["a.jsonl"]),
        ("data_paths=[a.jsonl,b.json]", ["a.jsonl", "b.json"]),
        ("data_paths=a.jsonl,b.json", ["a.jsonl", "b.json"]),
        ("data_paths=a.jsonl", ["a.jsonl"]),
        ("data_paths=('a.jsonl', 'b.json')", ["a.jsonl", "b.json"]),
        ("image_folders=images,None", ["images", None]),
        ("betas=0.9,0.95", (0.9, 0.95)),
        ("betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data_paths=[dict(a=True)]", [{"a": True}]),
        ("base=" + "models/é" * 20, "models/é" * 20),
        ("data_paths=" + ",".join(["/some/where/a.jsonl"] * 9), ["/some/where/a.jsonl"] * 9),
    ],
)
def test_a_value_takes_the_place_of_the_old_one(pair, value):
    before = Leaf.read(LORA)
    after = before.changed([pair])
    key = pair.split("=")[0]
    assert after.settings[key].value == value and type(after.settings[key].value) is type(value)
    others = [(name, setting.source) for name, setting in before.settings.items() if name != key]
    assert [(name, setting.source) for name, setting in after.settings.items() if name != key] == others
    assert {name: s.comment for name, s in after.settings.items()} == {n: s.comment for n, s in before.settings.items()}
    assert all(len(line) <= 120 or key == "base" for line in after.text.splitlines())
    found = read_config(str(LORA), text=after.standalone())[key]
    assert (list(found) if isinstance(value, list) else found) == value


def test_several_values_at_once_and_the_wiring_reads_them():
    leaf = Leaf.read(LORA).changed(["lr=5e-5", "max_tiles=3", "data_paths=" + ",".join(["/some/where/a.jsonl"] * 9)])
    cfg = read_config(str(LORA), text=leaf.changed(["lora_rank=7"]).standalone())
    assert (cfg.optim_wrapper.optimizer.lr, cfg.model.llm_lora.r) == (5e-5, 7)
    assert (cfg.train_dataloader.dataset.max_tiles, len(cfg.train_dataloader.dataset.data_paths)) == (3, 9)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("max_tile=6", "--set max_tile: .*finetune_lora.py has no such setting; did you mean max_tiles"),
        ("nonsense=6", "has no such setting; it has base, data_paths"),
        ("train_cfg.max_iters=3", "a key of the runner; use --cfg-options train_cfg.max_iters=3"),
        ("lr", "write KEY=VALUE"),
        (
            "data_paths={crop:1.5}",
            "--set data_paths={crop:1.5}: crop is no number and not in quotes; write a Python lit",
        ),
    ],
)
def test_what_cannot_be_set(pair, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Leaf.read(LORA).changed([pair])
    assert "\n" not in str(caught.value)


def test_a_config_without_settings_takes_none(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("lr = 1\nmodel = dict(lr=lr)\n")
    with pytest.raises(ConfigError, match="has no block of Settings"):
        Leaf.read(path).changed(["lr=2"])


def test_a_file_that_is_no_python(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("a = 1\nb = (\n")
    with pytest.raises(ConfigError, match="broken.py:2 cannot be read: SyntaxError"):
        Leaf.read(path)


@pytest.mark.parametrize("stem", ["pretrain_mlp", "finetune_mpo_full", "internvl_v3/internvl_v3_qwen2_5_14b_mpo"])
def test_labels_are_replaced_in_the_docstring(stem):
    words = " ".join(["word"] * 60)
    before = Leaf.read(ROOT / f"configs/{stem}.py")
    leaf = before.labelled({"data": words, "starts from": "here", "launch": "run it"})
    assert leaf.labels == {**before.labels, "data": words, "starts from": "here", "launch": "run it"}
    assert max(map(len, leaf.text.splitlines())) <= 120
    short = leaf.labelled({"data": "a.jsonl"})
    assert short.labels["data"] == "a.jsonl"  # its continued lines go with it
    assert short.text.split('"""')[2] == before.text.split('"""')[2]


@pytest.mark.parametrize("value", ["a", 'say "x"', "it's", "both \" and '", ["a", ("b",)], {"k": [1, None]}, 0.5, True])
def test_literals_read_back(value):
    assert ast.literal_eval(literal(value)) == value
