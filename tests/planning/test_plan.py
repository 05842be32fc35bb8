"""Plans of configs: what they read is what the config says, and measured lengths replace the largest ones."""

import json
import re
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from benchmarks.random_model import meta_model
from xtuner_plugins.families import llm_family
from xtuner_plugins.models.adapters import inject_lora
from xtuner_plugins.planning import plan, report
from xtuner_plugins.planning.hardware import GPUS
from xtuner_plugins.planning.job import Batch
from xtuner_plugins.planning.memory import GIB, Plan, plan_memory
from xtuner_plugins.planning.published import BASES, known_base
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.planning.strategies import launched, plain, strategy_named
from xtuner_plugins.settings import ConfigError, labels_of, leaves, read_config

PAIRS = ("finetune_dpo_lora", "finetune_mpo_full")


def settings_of(name):
    return read_config(name)._to_lazy_dict()


def planned(name):
    """A leaf on the processes and with the strategy of its launch line, and the GiB of the GPU that it names."""
    labels = labels_of(leaves()[name])
    gpus, deepspeed = launched(labels["launch"])
    strategy = strategy_named(deepspeed, gpus)
    return plan.plan_config(settings_of(name), strategy), int(re.search(r"of (\d+) GB", labels["hardware"])[1])


def test_each_leaf_fits_the_hardware_that_it_names():
    for name, path in leaves().items():
        if path.parent.name != "toy":
            run, memory = planned(name)
            assert 1 * GIB < run.memory.total <= 0.95 * memory * GIB, name
            own_data = "mine" in str(settings_of(name)["train_dataloader"]["dataset"]["data_paths"])
            assert own_data is False or run.seconds(100, 0.4) is None, name


def test_adapters_are_those_that_peft_adds():
    """By names, by a regular expression, by the family's own targets."""
    for name in ("siglip_sft_lora", "clip_qwen_7b_lora", "internvl_v3_5_qwen3_1b_lora_finetune"):
        job, settings = planned(name)[0].job, settings_of(name)
        model = meta_model(known_base(settings["model"]["base"]))
        meta_model.cache_clear()
        lora = {key: value for key, value in settings["model"]["llm_lora"].items() if key in ("r", "target_modules")}
        with torch.device("meta"):
            family = llm_family(model.language_model.config.to_dict())
            inject_lora(model.language_model, dict(type=LoraConfig, **lora), family.lora_targets)
        adapters = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
        assert job.adapter_parameters == adapters > 0, name
        projector = sum(p.numel() for p in model.mlp1.parameters())
        assert job.trained == adapters + projector * (not settings["model"].get("freeze_projector")), name


def test_the_largest_batches_of_rows_and_of_packs():
    shape = shape_of(BASES["InternViT-300M-Qwen2.5-1.5B"].config)
    full, text = plan.largest_batches(settings_of("finetune_full"), shape)
    assert full == Batch(4 * 8192, 4 * 13, 4 * (8192 - 13 * 256)) and text == Batch(4 * 8192, 0, 4 * 8192)
    full, text = plan.largest_batches(settings_of("finetune_packed"), shape)
    assert full == Batch(8192, 26, 8192 - 26 * 256) and text == Batch(8192, 0, 8192)


def test_settings_reach_the_job():
    model = {"base": "x", "gradient_checkpointing": False, "visual_encoder_checkpointing": True, "train_head": True}
    settings = {"model": {**model, "dtype": "float32"}, "optim_wrapper": {"optimizer": {"type": "AdamW8bit"}}}
    job = plan.job_of(settings, shape_of(BASES["InternVL2_5-1B"].config), (Batch(9, 1, 4),))
    assert (job.recompute, job.recompute_encoder, job.train_head, job.half) == (False, True, True, False)
    assert job.moments == 2 + 8 / 256 and not job.pairs
    assert job.whole == {"projector"} and job.accumulation == 1
    lora = {"model": {"base": "x", "llm_lora": {"lora_alpha": 16}}}
    adapters = plan.job_of(lora, job.shape, (Batch(9, 1, 4),)).adapters["llm"]
    assert (adapters.rank, adapters.dropout) == (LoraConfig().r, False)


def test_steps_and_time():
    run = planned("finetune_full")[0]
    assert run.samples_per_step == 128 and run.steps == 5196  # 665,000 / 128, rounded up
    assert run.seconds(100, 0.4) == 2 * run.seconds(200, 0.4) > 0
    assert run.seconds(100, 0.4) == pytest.approx(5196 * 128 * run.work.total / (8 * 4e13))
    assert plan.plan_config(settings_of("finetune_packed") | {"train_cfg": {"max_iters": 7}}, plain(1)).steps == 7


def test_what_cannot_be_planned():
    loader = {"train_dataloader": {"batch_size": 1, "dataset": {"max_length": 512}}}
    mine = {"base": "exports/mine"}
    for settings, message in (
        ({"model": {"type": "LLaVAModel"}}, "base names no model directory"),
        ({"model": {"base": "models/none"}}, "'models/none' isn't there, and no shipped config says what is in it"),
        ({"model": mine}, "needs batch_size and dataset.max_length"),
        ({"model": {**mine, "freeze_projector": True}, **loader}, "nothing would train"),
        ({"model": {**mine, "llm_lora": {"use_dora": True}}, **loader}, "use_dora=True isn't planned"),
        ({"model": {**mine, "llm_quantization": {"load_in_4bit": True}}, **loader}, "packed weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan.plan_config(settings, strategy_named("deepspeed_zero3", 2))


def test_a_reference_is_planned_where_one_is_computed():
    """With LoRA in each step but without a copy; the whole LLM with one; a precomputed one before the first step."""
    (lora, _), (precomputed, _) = map(planned, PAIRS)
    settings = settings_of(PAIRS[1])
    settings["model"]["precomputed_reference"] = False
    whole = plan.plan_config(settings, strategy_named("deepspeed_zero2", 8))
    assert whole.work.reference > lora.work.reference > 0 == precomputed.work.reference  # the encoder trains there
    assert lora.memory.parts["reference"] == precomputed.memory.parts["reference"] == 0
    assert whole.memory.parts["reference"] == 2 * whole.job.trained
    took, settings = {}, settings_of(PAIRS[1])
    for name in ("dpo", "sft"):
        settings["model"]["objectives"] = {name: 1.0}
        run = plan.plan_config(settings, precomputed.strategy, samples=2560)
        assert not run.job.reference and run.operations > 0
        took[name] = run.seconds(100, 0.5)
    once = 2560 * precomputed.work.forward / (precomputed.strategy.gpus * 1e14 * 0.5)
    assert took["dpo"] - took["sft"] == pytest.approx(once)


def test_the_copy_is_that_of_the_model(toy_base):
    from xtuner_plugins.models import PreferenceModel

    for own in ({"freeze_llm": False}, {"llm_lora": {"r": 4}}, {"visual_encoder_last_layers": 1}):
        for precomputed in (False, True):
            ours = {"objectives": {"dpo": 1.0}, "precomputed_reference": precomputed, "dtype": "float32", **own}
            real = PreferenceModel(base=str(toy_base), **ours)._reference
            job = plan.job_of(
                {"model": {"base": str(toy_base), **ours}}, plan.model_of(str(toy_base)), (Batch(9, 1, 4),)
            )
            assert plan_memory(job, plain(1)).parts["reference"] == real.num_bytes


@pytest.fixture
def toy_settings(toy_base, tmp_path):
    records = [
        {"conversations": [{"from": "human", "value": "a " * n}, {"from": "gpt", "value": "b"}]} for n in (1, 5, 50)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    data = {"base": str(toy_base), "data_paths": [str(path)], "max_length": 512}
    return {"model": {"base": str(toy_base)}, "train_dataloader": {"batch_size": 2, "dataset": data}}


def test_lengths_are_taken_from_the_cache_and_never_measured(toy_settings, monkeypatch):
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
    toy_settings["train_dataloader"]["batch_sampler"] = {"max_tokens": 640}
    assert plan.lengths_of(toy_settings, model).batches[1] == Batch(640, 0, 640)
    monkeypatch.setattr("xtuner_plugins.datasets.stores.PAUSES", (0,))
    toy_settings["train_dataloader"]["dataset"] |= {"data_paths": ["http://127.0.0.1:1/a.jsonl"]}
    assert "not measured" in plan.lengths_of(toy_settings, model).source  # a store that isn't reached


def test_advice_is_planned_again():
    def advise(used, available, settings, **results):
        def replan(pairs):
            return make(results.get(pairs[0].replace("=", "_"), 50))

        return plan.advise(settings, make(used), available * GIB, replan)

    def make(gib):
        return Plan("loss", {"all": int(gib * GIB)}, {}, 0)

    settings = dict(gradient_checkpointing=False, batch_size=4, accumulative_counts=2, max_tiles=12, max_length=4096)
    results = dict(gradient_checkpointing_True=31.2, batch_size_2=60, batch_size_1=85, max_tiles_6=99.99)
    assert advise(100, 80, settings, **results) == [
        "gradient_checkpointing=True saves 68.8 GiB: 31.2 of 80.0 GiB",
        "batch_size=2 accumulative_counts=4 saves 40.0 GiB: 60.0 of 80.0 GiB",
        "batch_size=1 accumulative_counts=8 saves 15.0 GiB: 85.0 of 80.0 GiB, which is not enough",
    ]
    roomy = dict(settings, gradient_checkpointing=True)
    found = advise(20, 80, roomy, gradient_checkpointing_False=70, batch_size_8=81)
    assert found == ["gradient_checkpointing=False fits too: 70.0 of 80.0 GiB"]
    found = advise(20, 80, dict(roomy, sequence_parallel=4), sequence_parallel_1=60, batch_size_8=81)
    assert found[0] == "sequence_parallel=1 fits too: 60.0 of 80.0 GiB"
    found = advise(100, 80, roomy, offload_activations_True=70, batch_size_2=101, batch_size_1=101, max_tiles_6=101)
    assert found == ["offload_activations=True saves 30.0 GiB: 70.0 of 80.0 GiB"]
    packed = dict(pack_tokens=8192, pack_tiles=26, batch_size=1, accumulative_counts=4, offload_activations=True)
    assert advise(100, 80, packed) == ["pack_tokens=4096 pack_tiles=13 saves 50.0 GiB: 50.0 of 80.0 GiB"]


def test_words_of_the_report(warm_up):
    verdicts = [report.verdict(Plan("loss", {"a": 10}, {"loss": 10}, 0), available) for available in (9, 10, 11, 12)]
    assert verdicts == ["does not fit", "tight", "tight", "fits"]
    job = replace(warm_up, last_layers=1)
    for strategy in (plain(1), strategy_named("deepspeed_zero2", 2)):
        assert set(plan_memory(job, strategy).moments) <= set(report.MOMENTS)
    for name, words in (
        ("finetune_full", "; 5,196 steps of 128 samples, at most "),
        ("finetune_lora", "counted the rec"),
    ):
        assert words in report.sentence((run := planned(name)[0]).memory, run, GPUS["H100"])
    assert report.duration(90) == "2 minutes" and report.duration(2 * 3600) == "2.0 hours"
