"""Plans of configs: what they read is what the config says, and measured lengths replace the largest ones."""

import json

import pytest
import torch

from tests.conftest import ROOT
from xtuner_plugins.config_file import ConfigError, read_config
from xtuner_plugins.engine.bitsandbytes_adamw import BitsAndBytesAdamW
from xtuner_plugins.engine.optimizers import build_adamw
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.memory import GIB, plan_memory
from xtuner_plugins.planning.strategies import plain
from xtuner_plugins.ranges import BITSANDBYTES, OPTIMIZER_NAMES
from xtuner_plugins.recipes import plan
from xtuner_plugins.recipes.count import count
from xtuner_plugins.recipes.table import RECIPES

REAL = [recipe for recipe in RECIPES if recipe.folder != "toy"]
ROWS = {recipe.stem: recipe for recipe in RECIPES}
KINDS = ("pretrain_vit_mlp", "finetune_packed", "finetune_qlora", "siglip_sft_qlora", "llava_qwen2_5_3b_full")
PAIRS = ("finetune_dpo_lora", "finetune_mpo_full", "internvl_v3_qwen2_5_14b_mpo")


@pytest.mark.parametrize("name", [*KINDS, *PAIRS])
def test_a_recipe_is_planned_as_its_config(name):
    recipe = ROWS[name]
    model = plan.model_of_base(recipe.architecture)
    settings = read_config(str(ROOT / recipe.path))._to_lazy_dict()
    of_row = plan.settings_of_recipe(recipe)
    assert plan.job_of(settings, model) == plan.job_of(of_row, model)
    assert plan.lengths_of(settings, model) == plan.lengths_of(of_row, model)


def test_each_recipe_fits_the_hardware_that_it_names():
    for recipe in REAL:
        total, room = plan.plan_recipe(recipe).memory.total, 0.95 * plan.planned_gpu(recipe).memory * GIB
        assert 1 * GIB < total == plan.planned_memory(recipe) <= room, recipe.stem
        hours, gpu = plan.planned_hours(recipe)
        assert gpu and (hours is None) == (recipe.data.num_samples is None), recipe.stem


@pytest.mark.parametrize("name", ["finetune_lora", "internvl_v3_5_qwen3_30b_a3b_lora_finetune", *KINDS])
def test_trained_and_packed_are_those_of_the_real_model(name):
    recipe = ROWS[name]
    job, real = plan.plan_recipe(recipe).job, count(recipe)
    assert (job.trained, job.adapter_parameters, job.packed) == (real.trained, real.adapters, real.packed)


def test_the_largest_batches_of_rows_and_of_packs():
    shape = plan.model_of_base(ROWS["finetune_full"].architecture).shape
    full, text = plan.largest_batches(plan.settings_of_recipe(ROWS["finetune_full"]), shape)
    assert full == Batch(2 * 4096, 2 * 13, 2 * (4096 - 13 * 256)) and text == Batch(8192, 0, 8192)
    full, text = plan.largest_batches(plan.settings_of_recipe(ROWS["finetune_packed"]), shape)
    assert full == Batch(8192, 26, 8192 - 26 * 256) and text == Batch(8192, 0, 8192)


def test_steps_and_time():
    planned = plan.plan_recipe(ROWS["finetune_full"])
    assert planned.samples_per_step == 128 and planned.steps == 5196  # 665,000 / 128, rounded up
    assert planned.seconds(100, 0.4) == 2 * planned.seconds(200, 0.4) > 0
    assert plan.plan_recipe(ROWS["finetune_lora"]).seconds(100, 0.4) is None  # one's own data
    assert planned.kept[False] > 10 * planned.kept[True]


def test_what_cannot_be_planned(toy_base):
    recipe = ROWS["finetune_lora"]
    model, settings = plan.model_of_base(recipe.architecture), plan.settings_of_recipe(recipe)
    with pytest.raises(ConfigError, match="only configs of VisionLanguageModel"):
        plan.job_of({"model": {"type": "LLaVAModel"}}, model)
    frozen = {"model": {"freeze_projector": True, "freeze_llm": True}, "train_dataloader": settings["train_dataloader"]}
    with pytest.raises(ConfigError, match="nothing would train"):
        plan.job_of(frozen, model)
    with pytest.raises(ConfigError, match="needs batch_size and dataset.max_length"):
        plan.largest_batches({}, model.shape)
    with pytest.raises(ConfigError, match="no model directory"):
        plan.plan_config({"model": {}}, plain(1))


def test_a_reference_is_planned_where_one_is_computed():
    """With LoRA in each step but without a copy; the whole LLM with one; a precomputed one before the first step."""
    lora, whole, precomputed = (plan.plan_recipe(ROWS[name]) for name in PAIRS)
    assert lora.work.reference == whole.work.reference > 0 == precomputed.work.reference
    assert "reference" not in lora.memory.parts and "reference" not in precomputed.memory.parts
    assert whole.memory.parts["reference"] == 2 * whole.job.trained
    took = {}
    for name in ("dpo", "sft"):
        settings = plan.settings_of_recipe(ROWS[PAIRS[2]])
        settings["model"]["objectives"] = {name: 1.0}
        run = plan.plan_run(settings, precomputed.model, precomputed.strategy, samples=2560)
        assert not run.job.reference and run.precomputes == (name == "dpo")
        took[name] = run.seconds(100, 0.5)
    once = 2560 * precomputed.work.forward / (precomputed.strategy.gpus * 1e14 * 0.5)
    assert took["dpo"] - took["sft"] == pytest.approx(once)
    settings["model"] |= {"objectives": {"dpo": 1.0}, "precomputed_reference": False}
    with pytest.raises(ConfigError, match="frozen copy"):
        plan.plan_run(settings, precomputed.model, precomputed.strategy)


def test_the_copy_is_that_of_the_model(toy_base):
    from xtuner_plugins.models import PreferenceModel

    for own in ({"freeze_llm": False}, {"llm_lora": {"r": 4}}, {"visual_encoder_last_layers": 1}):
        for precomputed in (False, True):
            ours = {"objectives": {"dpo": 1.0}, "precomputed_reference": precomputed, "dtype": "float32", **own}
            real = PreferenceModel(base=str(toy_base), **ours)._reference
            settings, model = {"model": {"base": str(toy_base), **ours}}, plan.model_of(str(toy_base))
            job = plan.job_of(settings, model, (Batch(9, 1, 4),))
            assert plan_memory(job, plain(1)).parts.get("reference", 0) == real.num_bytes


def test_objectives_without_a_reference_are_those_of_the_model():
    from xtuner_plugins.models.preference import FREE

    assert set(FREE) == plan.WITHOUT_REFERENCE


@pytest.fixture
def toy_settings(toy_base, tmp_path):
    records = [
        {"conversations": [{"from": "human", "value": "a " * n}, {"from": "gpt", "value": "b"}]} for n in (1, 5, 50)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    data = {"base": str(toy_base), "data_paths": [str(path)], "max_length": 512, "cache_dir": str(tmp_path / "cache")}
    return {"model": {"base": str(toy_base)}, "train_dataloader": {"batch_size": 2, "dataset": data}}


def test_lengths_are_taken_from_the_cache_and_never_measured(toy_settings):
    from xtuner_plugins.datasets import MultimodalDataset

    model = plan.model_of(toy_settings["model"]["base"])
    before = plan.lengths_of(toy_settings, model, samples=7)
    assert before.samples == 7 and "not measured" in before.source
    dataset = MultimodalDataset(**toy_settings["train_dataloader"]["dataset"])
    tokens, _, _ = dataset.layout(num_workers=0)
    after = plan.lengths_of(toy_settings, model)
    assert after.samples == 3 and after.source.startswith("lengths measured: 3 samples")
    assert after.mean.tokens == int(tokens.mean())
    assert after.batches[0].tokens == sorted(tokens)[-1] + sorted(tokens)[-2] and after.batches[0].tiles == 0


def test_a_directory_says_its_own_shape(toy_base):
    from safetensors import safe_open

    shape = plan.model_of(str(toy_base)).shape
    total = 0
    for path in toy_base.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(file.get_tensor(key).numel() for key in file.keys())
    assert shape.parameters == total


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_moments_take_what_the_optimizer_holds(name):
    """Of a tensor of whole blocks; the codes themselves are shared by all tensors and left out."""
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.ones_like(weight)
    bits, _ = BITSANDBYTES.get(name, (32, False))
    optimizer = BitsAndBytesAdamW([weight], optim_bits=bits) if name in BITSANDBYTES else build_adamw([weight])
    optimizer.step()
    held = [value for key, value in optimizer.state[weight].items() if torch.is_tensor(value) and "qmap" not in key]
    assert sum(t.nbytes for t in held if t.dim()) == plan.moment_bytes(name) * weight.numel()


def test_a_store_that_isnt_reached_is_no_reason_not_to_plan(toy_base):
    data = {"base": str(toy_base), "data_paths": ["http://127.0.0.1:1/a.jsonl"], "store_timeout": 1}
    assert plan._measured_lengths({"train_dataloader": {"dataset": data}}, model=None) is None
