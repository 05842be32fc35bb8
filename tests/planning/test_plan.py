"""Plans of configs: what they read is what the config says, and measured lengths replace the largest ones."""

import json
import re

import pytest
import torch
from mmengine.registry import OPTIMIZERS
from peft import LoraConfig

from xtuner_plugins.families import llm_family
from xtuner_plugins.models.adapters import inject_lora
from xtuner_plugins.planning import plan
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.memory import GIB, plan_memory
from xtuner_plugins.planning.published import BASES, ENCODERS, LLMS, known_base, meta_model
from xtuner_plugins.planning.strategies import from_deepspeed, plain
from xtuner_plugins.settings import ConfigError, labels_of, leaves, read_config, read_deepspeed

PAIRS = ("finetune_dpo_lora", "finetune_mpo_full", "internvl_v3_5_qwen3_8b_mpo")
# Totals in billions as model cards and stored tensors give them.
PUBLISHED = {
    "InternVL2-1B": "0.9382",
    "InternVL2-8B": "8.08",
    "InternVL-Chat-V1-5": "25.5",
    "InternVL2-26B": "25.5",
    "InternVL2_5-2B": "2.206",
    "InternVL2_5-4B": "3.71",
    "InternVL3-8B": "7.94",
    "InternVL3-14B": "15.1",
    "InternVL3-38B": "38.4",
    "InternVL3_5-1B": "1.061",
    "InternVL3_5-8B": "8.53",
    "InternVL3_5-30B-A3B": "30.8",
}


def settings_of(name):
    return read_config(name)._to_lazy_dict()


def planned(name):
    """A leaf on the processes and with the strategy of its launch line, and the GiB of the GPU that it names."""
    labels = labels_of(leaves()[name])
    processes = re.search(r"NPROC_PER_NODE=(\d+)", labels["launch"])
    deepspeed = re.search(r"--deepspeed (\S+)", labels["launch"])
    gpus = int(processes[1]) if processes else 1
    strategy = from_deepspeed(deepspeed[1], read_deepspeed(deepspeed[1]), gpus) if deepspeed else plain(gpus)
    return plan.plan_config(settings_of(name), strategy), int(re.search(r"of (\d+) GB", labels["hardware"])[1])


def test_totals_are_the_published_ones():
    for name, billions in PUBLISHED.items():
        total = plan.model_of_base(BASES[name]).shape.parameters
        assert f"{total / 1e9:.{len(billions.partition('.')[2])}f}" == billions, name


def test_each_base_names_known_parts():
    for base in BASES.values():
        assert base.encoder in ENCODERS and base.llm in LLMS and base.commands


def test_each_leaf_fits_the_hardware_that_it_names():
    for name, path in leaves().items():
        if path.parent.name != "toy":
            run, memory = planned(name)
            assert 1 * GIB < run.memory.total <= 0.95 * memory * GIB, name
            own_data = "mine" in str(settings_of(name)["train_dataloader"]["dataset"]["data_paths"])
            assert own_data is False or run.seconds(100, 0.4) is None, name


@pytest.mark.parametrize("name", ["siglip_sft_lora", "clip_qwen_7b_lora", "internvl_v3_5_qwen3_1b_lora_finetune"])
def test_adapters_are_those_that_peft_adds(name):
    """By names, by a regular expression, by the family's own targets."""
    job, settings = planned(name)[0].job, settings_of(name)
    meta_model.cache_clear()
    model = meta_model(known_base(settings["model"]["base"]))
    lora = {key: value for key, value in settings["model"]["llm_lora"].items() if key in ("r", "target_modules")}
    with torch.device("meta"):
        family = llm_family(model.language_model.config.to_dict())
        inject_lora(model.language_model, dict(type=LoraConfig, **lora), family.lora_targets)
    adapters = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
    assert job.adapter_parameters == adapters > 0
    assert job.trained == adapters + sum(p.numel() for p in model.mlp1.parameters())
    meta_model.cache_clear()


def test_what_trains_whole_is_counted_without_layers_that_no_feature_needs():
    job = planned("llava_qwen2_5_3b_full")[0].job
    model = meta_model(BASES["LLaVA-Qwen2.5-3B"])
    unused = [model.vision_model.layers[-1], model.vision_model.vision_model.post_layernorm]
    assert job.shape.parameters - job.trained == sum(p.numel() for module in unused for p in module.parameters())


def test_the_largest_batches_of_rows_and_of_packs():
    shape = plan.model_of_base(BASES["InternViT-300M-Qwen2.5-1.5B"]).shape
    full, text = plan.largest_batches(settings_of("finetune_full"), shape)
    assert full == Batch(2 * 4096, 2 * 13, 2 * (4096 - 13 * 256)) and text == Batch(8192, 0, 8192)
    full, text = plan.largest_batches(settings_of("finetune_packed"), shape)
    assert full == Batch(8192, 26, 8192 - 26 * 256) and text == Batch(8192, 0, 8192)


def test_steps_and_time():
    run = planned("finetune_full")[0]
    assert run.samples_per_step == 128 and run.steps == 5196  # 665,000 / 128, rounded up
    assert run.seconds(100, 0.4) == 2 * run.seconds(200, 0.4) > 0
    assert run.kept[False] > 10 * run.kept[True]


def test_what_cannot_be_planned(toy_base):
    settings = settings_of("finetune_lora")
    model = plan.model_of("exports/mine")
    with pytest.raises(ConfigError, match="only configs of VisionLanguageModel"):
        plan.job_of({"model": {"type": "LLaVAModel"}}, model)
    frozen = {"model": {"freeze_projector": True, "freeze_llm": True}, "train_dataloader": settings["train_dataloader"]}
    with pytest.raises(ConfigError, match="nothing would train"):
        plan.job_of(frozen, model)
    with pytest.raises(ConfigError, match="needs batch_size and dataset.max_length"):
        plan.largest_batches({}, model.shape)
    with pytest.raises(ConfigError, match="no model directory"):
        plan.plan_config({"model": {}}, plain(1))
    with pytest.raises(ConfigError, match="'models/none' isn't there, and no shipped config says what is in it"):
        plan.model_of("models/none")


def test_a_reference_is_planned_where_one_is_computed():
    """With LoRA in each step but without a copy; the whole LLM with one; a precomputed one before the first step."""
    lora, whole, precomputed = (planned(name)[0] for name in PAIRS)
    assert lora.work.reference == whole.work.reference > 0 == precomputed.work.reference
    assert "reference" not in lora.memory.parts and "reference" not in precomputed.memory.parts
    assert whole.memory.parts["reference"] == 2 * whole.job.trained
    took = {}
    for name in ("dpo", "sft"):
        settings = settings_of(PAIRS[2])
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


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "PagedAdamW32bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_moments_take_what_the_optimizer_holds(name):
    """Of a tensor of whole blocks; the codes themselves are shared by all tensors and left out."""
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.ones_like(weight)
    optimizer = OPTIMIZERS.build({"type": name, "params": [weight]})
    optimizer.step()
    held = [value for key, value in optimizer.state[weight].items() if torch.is_tensor(value) and "qmap" not in key]
    assert sum(t.nbytes for t in held if t.dim()) == plan.moment_bytes({"type": name}) * weight.numel()


def test_a_store_that_isnt_reached_is_no_reason_not_to_plan(toy_base, monkeypatch):
    monkeypatch.setattr("xtuner_plugins.datasets.stores.PAUSES", (0,))
    data = {"base": str(toy_base), "data_paths": ["http://127.0.0.1:1/a.jsonl"]}
    assert plan._measured_lengths({"train_dataloader": {"dataset": data}}, model=None) is None
