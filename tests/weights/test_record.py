"""The record of a run: what it holds, and which runs are the same; `tests/engine/run/test_same_run.py` resumes."""

import copy
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from xtuner_plugins.models.vlm import VisionLanguageModel
from xtuner_plugins.weights import record


def test_a_hash_is_read_once_and_follows_its_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for text in (b"one", b"two"):
        path.write_bytes(text)
        assert record.file_hash(path) == hashlib.sha256(text).hexdigest()
        with monkeypatch.context() as patched:
            patched.setattr(record.manifest, "digest", None)  # what would read it
            assert record.file_hash(path) == hashlib.sha256(text).hexdigest()
    next((tmp_path / "cache").glob("*/*/*")).write_text("[")
    assert record.file_hash(path) == hashlib.sha256(b"two").hexdigest()


@pytest.fixture
def config(toy_base):
    model = {"type": VisionLanguageModel, "base": str(toy_base), "llm_lora": {"type": LoraConfig, "r": 4}}
    return {
        "model": {**model, "sequence_parallel": 2},
        "train_dataloader": {"batch_size": 2, "num_workers": 4, "dataset": {"data_paths": "/a", "max_length": 512}},
        "optim_wrapper": {"accumulative_counts": 3, "optimizer": {"type": torch.optim.AdamW, "betas": (0.9, 0.99)}},
        "train_cfg": {"max_epochs": 1},
    }


def make(config, files=(), **changes):
    """A record, whose data are these files and the rejected rows of each."""
    index, template = SimpleNamespace(file=__file__, columns=None), SimpleNamespace(name="Hermes-2")
    index = type("Index", (SimpleNamespace,), {"__len__": lambda self: 5})(**vars(index))
    settings = dict(index=index, template=template, repeat=1.0, loss_weight=1.0, tiling="t", jpeg_quality=None)
    sources = [SimpleNamespace(name=name, **settings) for name, _ in files]
    dataset = SimpleNamespace(sources=sources, rejected=[rejected for _, rejected in files])
    return record.make(config, dataset, **{"ranks": 4, "dtype": "float32", "resize_rule": "r", "seed": 1, **changes})


def test_what_is_recorded(config):
    made = make(config, [("a", {3, 1})])
    assert record.plain(config["model"]).keys() == config["model"].keys()
    assert made["steps"] == dict(zip(record.STEPS, (12, 2, 2, 3, 1, None), strict=True))
    assert not any(name.endswith(".py") or name == "generation_config.json" for name in made["base"]["files"])
    settings, (data,) = made["settings"], made["data"]
    assert settings["model"]["llm_lora"] == {"type": "LoraConfig", "r": 4} and settings["model"]["dtype"] == "float32"
    assert settings["model"]["freeze_llm"] is True and "base" not in settings["model"]  # defaults of our classes
    assert settings["train_dataloader"] == {"dataset": {"max_length": 512}}
    assert record.plain({*"qkvo"}) == [*"koqv"]  # a set has another order in each process
    optimizer = {"type": "AdamW", "betas": [0.9, 0.99]}
    assert settings["optim_wrapper"] == {"optimizer": optimizer, "clip_grad": {"max_norm": None}}
    assert (data["records"], data["rejected"], data["sha256"]) == (5, [1, 3], record.file_hash(__file__))
    assert make(config, deepspeed=True)["settings"]["optim_wrapper"]["clip_grad"] == {"max_norm": 1.0}
    assert record.defaults_of({"model": config["model"]})["model"]["freeze_llm"] is True
    config["strategy"] = {"gradient_accumulation_steps": 5, "gradient_clipping": 0.5}
    made = make(config, deepspeed=True)
    assert made["steps"]["samples_per_step"] == 20 and made["settings"]["optim_wrapper"]["clip_grad"]["max_norm"] == 0.5
    del config["strategy"], config["model"]["sequence_parallel"], config["optim_wrapper"]["accumulative_counts"]
    assert list(make(config)["steps"].values()) == [8, 4, 2, 1, 1, None]


def test_which_runs_are_the_same(config, refused):
    then, name, digest = make(config, [("a", {1})]), "config.json", "f" * 64

    def changed(path, value):
        part = now = copy.deepcopy(then)
        *above, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in above:
            part = part[key]
        part[last] = value
        return now

    for path, value, note in (
        ("settings/model/new", 5, None),
        ("settings/seed", None, None),
        ("steps/ranks", 1, "was 2 and is 1, with as many samples per step"),
        ("steps/max_iters", 3, "span that length"),
        ("base/path", "/b", "the base /b has the same files as"),
        ("base/files/NOTES.txt", digest, None),
        ("data/0/name", "renamed", None),
        ("versions/torch", "0", "torch was .* and is '0'"),
    ):
        notes = record.require_same_run(then, changed(path, value), {"model": {"new": 5}}, "a.pth")
        assert len(notes) == bool(note) and re.search(note or "", "".join(notes)), path
    for path, value, told in (
        ("settings/seed", 2, r"a.pth: another run saved it: seed was 1 and is 2; resume .*load_from=a.pth"),
        ("settings/model/new", 6, "model.new was 5 and is 6; .*export it and begin a new run with the export as its"),
        ("base/files/added.json", digest, "added.json of the base .*, but it trained with none of"),
        (
            f"base/files/{name}",
            digest,
            f"{name} of the base .* has SHA-256 f{{8}}, but it trained with .{{8}} of .*load_from",
        ),
        ("data/0/sha256", digest, r"data a: sha256 was '.{8}' and is 'f{8}'"),
        ("data/0/rejected", [*range(99)], r"rejected was \[1\] and is \[0, .{70,78}\.\.\.; resume"),
        ("settings/four", dict.fromkeys("abcd", 3), r"four.c was None and is 3 \(and 1 more\); resume"),
        ("data", [], "data_paths had 1 files and has 0"),
        ("steps/samples_per_step", 6, r"were 12 \(2 x 3 x 2\) and are 6"),
    ):
        refused(told, record.require_same_run, then, changed(path, value), {"model": {"new": 5}}, "a.pth")
    del (earlier := copy.deepcopy(then))["settings"]["default_hooks"]  # as before it was recorded
    assert record.require_same_run(earlier, then, {}, "a.pth") == []
    refused("holds no record of its run", record.require_same_run, None, then, {}, "a.pth")
