"""A leaf of each method and of each kind of base is trained, saved, exported, reopened and asked, on a tiny base."""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.checkpoints.training import chat_inputs, logits
from tests.engine.forked import run_forked
from tests.engine.parallel_case import base_and_data, logged, write_dataset
from xtuner_plugins.checkpoints.export import export
from xtuner_plugins.checkpoints.loader import load_model, load_tokenizer
from xtuner_plugins.config_file import load_config
from xtuner_plugins.engine.config_check import check_config
from xtuner_plugins.models import PreferenceModel, VisionLanguageModel
from xtuner_plugins.recipes.table import RECIPES
from xtuner_plugins.toy.bases import kind, write_tiny_base

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
TOWER = {"visual_encoder": "vision_model", "projector": "mlp1", "llm": "language_model"}
FAMILIES = sorted({recipe.folder for recipe in RECIPES})


def aspects(recipe):
    """What makes a leaf run other code than another: its method, and its kind of base."""
    method = (recipe.visual_encoder, recipe.projector, recipe.llm, recipe.quantized, recipe.packed)
    return {("method", *method, *(recipe.objectives or ())), ("base", *kind(recipe.architecture))}


def one_of_each():
    """Few leaves that have every aspect among them, those first that add two."""
    missing, chosen = set().union(*map(aspects, RECIPES)), []
    for new in (2, 1):
        for recipe in RECIPES:
            if len(aspects(recipe) & missing) >= new:
                chosen.append(recipe)
                missing -= aspects(recipe)
    return chosen


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data", num_samples=24)


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    """Options of a recipe's run on the tiny twin of its base."""
    made = {}

    def of(recipe):
        key = kind(recipe.architecture)
        if key not in made:
            made[key] = write_tiny_base(recipe.architecture, tmp_path_factory.mktemp("base"))
        settings = base_and_data(made[key], data)
        # As many files as the recipe names: all of them this one.
        for name in ("data_paths", "image_folders"):
            settings[f"train_dataloader.dataset.{name}"] *= len(recipe.data.paths)
        return settings

    return of


def digests(model):
    return {
        name: hashlib.sha256(p.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        for name, p in model.named_parameters()
        if not p.requires_grad and p.numel()
    }


def watch_frozen(path):
    """Writes what the frozen weights are before and after training (in the training process)."""
    from xtuner_plugins.engine.loops import PlannedTrainLoop

    run = PlannedTrainLoop.run

    @functools.wraps(run)
    def watched(loop):
        model = getattr(loop.runner.model, "module", loop.runner.model)
        before = digests(model)
        result = run(loop)
        Path(path).write_text(json.dumps([before, digests(model)]))
        return result

    PlannedTrainLoop.run = watched


def train(recipe, settings, folder, *, processes=1, extra=()):
    settings = {
        **settings,
        "train_cfg.max_iters": STEPS,
        "train_cfg.max_epochs": 50,
        "default_hooks.logger.interval": 1,
    }
    words = [f"{k}={json.dumps(v) if isinstance(v, list) else v}".replace('"', "") for k, v in settings.items()]
    arguments = [recipe.path, "--work-dir", str(folder / recipe.stem), *extra, "--cfg-options", *words]
    prepare = functools.partial(watch_frozen, str(folder / "frozen.json")) if processes == 1 else None
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = run_forked(arguments, env, folder / recipe.stem, processes=processes, prepare=prepare)
    assert run.ok, run.output[-3000:] + run.others
    gradients = logged(folder / recipe.stem, "grad_norm")
    assert len(gradients) == STEPS and all(norm > 0 for norm in gradients)
    return folder / recipe.stem


@pytest.mark.parametrize("recipe", one_of_each(), ids=lambda recipe: recipe.stem)
def test_leaf_trains_saves_exports_and_answers(recipe, options, tmp_path):
    work_dir = train(recipe, options(recipe), tmp_path)
    before, after = json.loads((tmp_path / "frozen.json").read_text())
    assert before and before == after  # frozen weights keep their bits

    checkpoint = torch.load(work_dir / f"iter_{STEPS}.pth", weights_only=False)["state_dict"]
    config = Config.fromfile(work_dir / f"{recipe.stem}.py")
    settings = {k: v for k, v in config.model.items() if k != "type" and not k.endswith("_quantization")}
    torch.manual_seed(0)
    trained = (PreferenceModel if recipe.objectives else VisionLanguageModel)(**settings)
    start = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
    assert checkpoint.keys() == start.keys()
    for part, tower in TOWER.items():
        states = {"lora_" in name for name in start if name.startswith(f"model.{tower}.")}
        expected = {"all": {False}, "lora": {True}, "frozen": set()}[getattr(recipe, part)]
        assert states == expected, (part, states)
    still = [name for name in start if "lora_A" not in name and torch.equal(start[name], checkpoint[name])]
    assert still == []  # every trained tensor has moved (A of LoRA starts at random)

    export(work_dir / f"{recipe.stem}.py", work_dir / f"iter_{STEPS}.pth", tmp_path / "out", dtype="float32")
    trained.load_state_dict(checkpoint, strict=False)
    trained.eval()
    exported, _ = load_model(tmp_path / "out", dtype=None)
    exported.img_context_token_id = trained.model.img_context_token_id
    inputs = chat_inputs(trained.model)
    expected = logits(trained.model, inputs)
    gap = (logits(exported, inputs) - expected).abs().max()
    assert expected.std() > 0.01 and gap <= 1e-4 * max(1.0, float(expected.abs().max()))

    answer = exported.chat(load_tokenizer(tmp_path / "out"), inputs[0], "What is it?", dict(max_new_tokens=3))
    assert isinstance(answer, str)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("folder", [folder for folder in FAMILIES if folder != "toy"])
def test_a_leaf_of_each_family_trains_in_two_processes(folder, options, tmp_path):
    """With the ZeRO stage of its launch line."""
    leaves = [recipe for recipe in RECIPES if recipe.folder == folder]
    leaf = max(leaves, key=lambda recipe: recipe.deepspeed or "")  # the highest stage
    deepspeed = ("--deepspeed", leaf.deepspeed) if leaf.deepspeed else ()
    work_dir = train(leaf, options(leaf), tmp_path, processes=2, extra=deepspeed)
    name = f"iter_{STEPS}.pth"
    assert (work_dir / name).exists()
    export(work_dir / f"{leaf.stem}.py", work_dir / name, tmp_path / "out")


def test_every_leaf_passes_the_check(options):
    """Keywords and values as shipped; and with the option that `tools/train.py --help` shows."""
    complaints = []
    for recipe in RECIPES:
        for extra in {}, {"train_cfg.max_iters": 100}:
            try:
                check_config(load_config(str(ROOT / recipe.path), {**options(recipe), **extra}))
            except ValueError as error:
                complaints.append(f"{recipe.stem} {extra}: {error}")
    assert complaints == []
