"""A leaf of each method and of each kind of base is trained, saved, exported and reopened, on a tiny base."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.engine.forked import base_and_data, logged, run_forked, write_dataset
from tests.toy_bases import kind, write_tiny_base
from tests.weights.training import chat_inputs, logits
from xtuner_plugins.export.export import export
from xtuner_plugins.families import PARTS
from xtuner_plugins.planning.published import BASES, known_base
from xtuner_plugins.settings import labels_of, leaves
from xtuner_plugins.settings import read_config as read
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.loader import load_model

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
LEAVES = leaves()
read_config = functools.cache(read)


def base_of(name):
    """The published model of a leaf; the quick start's models are of the root's kind."""
    return known_base(read_config(name).model.base) or BASES["InternViT-300M-Qwen2.5-1.5B"]


def states_of(model):
    """What of each part trains: ``all``, ``lora`` or ``frozen``."""
    frozen = {part: model.get(f"freeze_{part}", row.is_frozen) for part, row in PARTS.items()}
    return {part: "lora" if model.get(f"{part}_lora") else "frozen" if frozen[part] else "all" for part in PARTS}


def aspects(name):
    """What makes a leaf run other code than another: its method, and its kind of base."""
    cfg = read_config(name)
    quantized = [part for part in PARTS if cfg.model.get(f"{part}_quantization")]
    packed = "batch_sampler" in cfg.train_dataloader
    method = (cfg.model.type.__name__, *states_of(cfg.model).values(), *quantized, packed)
    method = (*method, *cfg.model.get("objectives", ()))
    return {("method", *method), ("base", *kind(base_of(name)))}


def one_of_each():
    """Few leaves that have every aspect among them, those first that add two."""
    of = {name: aspects(name) for name in LEAVES}
    missing, chosen = set().union(*of.values()), []
    for new in (2, 1):
        for name in LEAVES:
            if len(of[name] & missing) >= new:
                chosen.append(name)
                missing -= of[name]
    return chosen


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data", num_samples=24)


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    """Options of a leaf's run on the tiny twin of its base."""
    made = {}

    def of(name):
        key = kind(base_of(name))
        if key not in made:
            made[key] = write_tiny_base(base_of(name), tmp_path_factory.mktemp("base"))
        settings = base_and_data(made[key], data)
        # As many files as the leaf names: all of them this one.
        if "objectives" in read_config(name).model:
            settings["train_dataloader.dataset.data_paths"] = [str(data[0].with_name("pairs.jsonl"))]
        for key in ("data_paths", "image_folders"):
            settings[f"train_dataloader.dataset.{key}"] *= len(read_config(name).train_dataloader.dataset[key])
        return settings

    return of


def train(name, settings, folder, stage):
    settings = {**settings, "train_cfg.max_iters": STEPS, "train_cfg.max_epochs": 50}
    settings["default_hooks.logger.interval"] = 1
    words = [f"{k}={json.dumps(v) if isinstance(v, list) else v}".replace('"', "") for k, v in settings.items()]
    arguments = [str(LEAVES[name]), "--work-dir", str(folder / name), "--cfg-options", *words]
    if stage:
        arguments[1:1] = ["--deepspeed", stage]
    run = run_forked(
        arguments, {**os.environ, "OMP_NUM_THREADS": "1"}, folder / name, processes=1 if stage is None else 2
    )
    assert run.ok, run.output[-3000:] + run.others
    gradients = logged(folder / name, "grad_norm")
    assert len(gradients) == STEPS and all(norm > 0 for norm in gradients)
    return folder / name


# A leaf for every way in which launch lines start several processes.
STAGES = {labels_of(path)["launch"].partition("--deepspeed ")[2]: name for name, path in LEAVES.items()}
STARTS = [pytest.param(name, stage, marks=pytest.mark.slow) for stage, name in STAGES.items()]


@pytest.mark.parametrize("name, stage", [*((name, None) for name in one_of_each()), *STARTS])
def test_leaf_trains_and_saves_what_its_export_holds(name, stage, options, tmp_path):
    """In one process; a leaf of each launch line in two."""
    work_dir = train(name, options(name), tmp_path, stage)
    saved = open_checkpoint(work_dir / f"iter_{STEPS}.pth").tensors
    checkpoint = {key: tensor.read() for key, tensor in saved.items()}
    config = Config.fromfile(work_dir / f"{name}.py")
    settings = {k: v for k, v in config.model.items() if k != "type" and not k.endswith("_quantization")}
    torch.manual_seed(0)
    trained = read_config(name).model.type(**settings)
    start = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
    assert checkpoint.keys() == start.keys()
    for part, state in states_of(config.model).items():
        found = {"lora_" in key for key in start if key.startswith(f"model.{PARTS[part].attribute}.")}
        assert found == {"all": {False}, "lora": {True}, "frozen": set()}[state], (part, found)
    still = [key for key in start if "lora_A" not in key and torch.equal(start[key], checkpoint[key])]
    assert still == []  # every trained tensor has moved (A of LoRA starts at random)

    export(work_dir / f"{name}.py", work_dir / f"iter_{STEPS}.pth", tmp_path / "out", dtype="float32")
    trained.load_state_dict(checkpoint, strict=False)
    trained.eval()
    exported = load_model(tmp_path / "out", dtype=None)
    exported.img_context_token_id = trained.model.img_context_token_id
    inputs = chat_inputs(trained.model)
    expected = logits(trained.model, inputs)
    gap = (logits(exported, inputs) - expected).abs().max()
    assert expected.std() > 0.01 and gap <= 1e-4 * max(1.0, float(expected.abs().max()))
