"""Plans of configs: what they read is what the config says, and measured lengths replace the largest ones."""

import json
import re
from dataclasses import replace

import pytest
from peft import LoraConfig

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.models import PreferenceModel
from xtuner_plugins.planning import plan
from xtuner_plugins.planning.hardware import GPUS
from xtuner_plugins.planning.job import Batch, launched, plain, strategy_named
from xtuner_plugins.planning.memory import GIB, Plan, plan_memory
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.planning.shapes import shape_of
from xtuner_plugins.settings import ConfigError, labels_of, leaves, read_config


def settings_of(name):
    return read_config(name)._to_lazy_dict()


def planned(name):
    gpus, deepspeed = launched(labels_of(leaves()[name])["launch"])
    return plan.plan_config(settings_of(name), strategy_named(deepspeed, gpus))


def test_each_leaf_fits_the_hardware_that_it_names():
    for name, path in leaves().items():
        if path.parent.name != "toy":
            run, memory = planned(name), int(re.search(r"of (\d+) GB", labels_of(path)["hardware"])[1])
            assert 1 * GIB < run.memory.total <= 0.95 * memory * GIB, name


def test_settings_reach_the_job_and_its_batches():
    shape = shape_of(BASES["InternViT-300M-Qwen2.5-1.5B"].config)
    for name, tokens, tiles in (("finetune_full", 4 * 8192, 4 * 13), ("finetune_packed", 8192, 26)):
        full, text = plan.largest_batches(settings_of(name), shape)
        assert full == Batch(tokens, tiles, tokens - tiles * 256) and text == Batch(tokens, 0, tokens)
    model = {"base": "x", "gradient_checkpointing": False, "visual_encoder_checkpointing": True, "train_head": True}
    model |= {"dtype": "float32", "llm_lora": {"lora_alpha": 16}}
    settings = {"model": model, "optim_wrapper": {"optimizer": {"type": "AdamW8bit"}}}
    job = plan.job_of(settings, shape, (Batch(9, 1, 4),))
    assert (job.recompute, job.recompute_encoder, job.train_head, job.half) == (False, True, True, False)
    assert job.moments == 2 + 8 / 256 and job.whole == {"projector"} and job.accumulation == 1 and not job.pairs
    assert (job.adapters["llm"].rank, job.adapters["llm"].dropout) == (LoraConfig().r, False)


def test_what_cannot_be_planned():
    loader, mine = {"train_dataloader": {"batch_size": 1, "dataset": {"max_length": 512}}}, {"base": "exports/mine"}
    for settings, message in (
        ({"model": {"type": "LLaVAModel"}}, "base names no model directory"),
        ({"model": mine}, "needs batch_size and dataset.max_length"),
        ({"model": {**mine, "freeze_projector": True}, **loader}, "nothing would train"),
        ({"model": {**mine, "llm_lora": {"use_dora": True}}, **loader}, "use_dora=True isn't planned"),
        ({"model": {**mine, "sequence_parallel": 4}, **loader}, "sequence_parallel=4 must divide the 2 GPUs"),
        ({"model": {**mine, "objectives": {"dpo": 1.0}}, **loader}, "precompute_reference=True"),
        ({"model": {**mine, "llm_quantization": {"load_in_4bit": True}}, **loader}, "packed weights can't be part"),
        ({"model": {"base": "no/such"}, **loader}, "model directory 'no/such' isn't there, and no shipped config says"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan.plan_config(settings, strategy_named("deepspeed_zero3", 2))


def test_a_reference_is_a_copy_of_what_trains_whole_and_reads_each_pair(toy_base):
    """Adapters are switched off instead; a precomputed one needs no copy, and reads each pair once before the run."""
    for own in ({"freeze_llm": False}, {"llm_lora": {"r": 4}}, {"visual_encoder_last_layers": 1}):
        for precomputed in (False, True):
            ours = {"base": str(toy_base), "objectives": {"dpo": 1.0}, "precomputed_reference": precomputed, **own}
            job = plan.job_of({"model": ours}, plan.model_of(str(toy_base)), (Batch(9, 1, 4),))
            real = PreferenceModel(**ours, dtype="float32")._reference
            held = plan_memory(replace(job, half=False), plain(8)).parts["reference"]
            assert held == sum(copy.nbytes for _, _, copy in real._copies), ours
    flash = [planned(f"flash_{each}").job for each in ("consistency", "router")]
    assert [(set(job.whole), job.copied) for job in flash] == [({"mlp2"}, 0), ({"router"}, 0)]
    settings, took = settings_of("finetune_mpo_full"), {}
    assert planned("finetune_dpo_lora").work.reference > 0 == planned("finetune_mpo_full").work.reference
    for name in ("dpo", "sft"):
        settings["model"]["objectives"] = {name: 1.0}
        run = plan.plan_config(settings, strategy_named("deepspeed_zero2", 8), samples=2560)
        took[name] = run.seconds(100, 0.5)
    assert took["dpo"] - took["sft"] == pytest.approx(2560 * run.work.forward / (8 * 1e14 * 0.5))


def test_lengths_are_taken_from_the_cache_and_never_measured(toy_base, tmp_path, monkeypatch):
    turns = [[{"from": "human", "value": "a " * n}, {"from": "gpt", "value": "b"}] for n in (1, 5, 50)]
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": each} for each in turns]))
    data = {"base": str(toy_base), "data_paths": [str(tmp_path / "data.json")], "max_length": 512}
    loader, model = {"batch_size": 2, "dataset": data}, plan.model_of(str(toy_base))
    settings = {"model": {"base": str(toy_base)}, "train_dataloader": loader}
    said = "lengths not measured: every sample taken to have 1 tiles and 496 tokens of text"
    expected = plan.Lengths(7, Batch(512, 1, 496), (Batch(1024, 2, 992), Batch(1024, 0, 1024)), said)
    assert plan.lengths_of(settings, model, samples=7) == expected
    tokens, _, _ = MultimodalDataset(**data).layout(num_workers=0)
    after = plan.lengths_of(settings, model)
    assert after.source.startswith("lengths measured: 3 samples") and after.mean.tokens == int(tokens.mean())
    assert after.batches[0].tokens == sorted(tokens)[-1] + sorted(tokens)[-2] and after.batches[0].tiles == 0
    loader["batch_sampler"] = {"max_tokens": 640}
    assert plan.lengths_of(settings, model).batches[1] == Batch(640, 0, 640)
    monkeypatch.setattr("xtuner_plugins.datasets.stores.PAUSES", (0,))
    data["data_paths"] = ["http://127.0.0.1:1/a.jsonl"]
    assert "not measured" in plan.lengths_of(settings, model).source  # a store that isn't reached


ROWS = dict(batch_size=4, accumulative_counts=2, max_tiles=12, max_length=4096)
SMALLER = ["batch_size=2 accumulative_counts=4", "batch_size=1 accumulative_counts=8", "max_tiles=6 max_length=2048"]
FASTER = ["gradient_checkpointing=False", "batch_size=8 accumulative_counts=1"]
CHANGES = [  # GiB used of 80, settings; the changes that are planned
    (100, ROWS | {"gradient_checkpointing": False}, ["gradient_checkpointing=True", *SMALLER]),
    (100, ROWS, ["offload_activations=True", *SMALLER]),
    (100, dict(pack_tokens=8192, pack_tiles=26), ["offload_activations=True", "pack_tiles=13 pack_tokens=4096"]),
    (100, dict(batch_size=1), ["offload_activations=True", "batch_size=1 accumulative_counts=1"]),
    (20, ROWS, ["sequence_parallel=1", *FASTER]),
]


def test_advice_is_planned_again():
    def advise(used, settings, *needed):
        def replan(pairs):
            asked.append(" ".join(pairs))
            return Plan("loss", {"all": int(needed[min(len(asked), len(needed)) - 1] * GIB)}, {}, 0)

        asked = []
        return plan.advise(settings, Plan("loss", {"all": used * GIB}, {}, 0), 80 * GIB, replan), asked

    for used, settings, expected in CHANGES:
        assert advise(used, settings, 50)[1] == expected
    said = ["offload_activations=True saves 68.8 GiB: 31.2 of 80.0 GiB"]
    said += [f"{SMALLER[0]} saves 15.0 GiB: 85.0 of 80.0 GiB, which is not enough"]
    assert advise(100, ROWS, 31.2, 85, 99.99)[0] == said
    assert advise(20, ROWS, 20, 70, 81)[0] == ["gradient_checkpointing=False fits too: 70.0 of 80.0 GiB"]


TABLES = """Memory of one rank, DDP on 2 x H100, GiB
weights                                 60.0
sum, most at: loss                      60.0
in the CPU's memory                      3.0
free of 80.0: fits                      20.0
All strategies              GPU, GiB  CPU, GiB
DDP                             60.0       3.0  does not fit
"""


def test_steps_time_and_words_of_the_report():
    run = planned("finetune_full")
    least = {"train_dataloader.batch_size": 1, "optim_wrapper.accumulative_counts": 1}
    least = read_config("finetune_full", least)._to_lazy_dict()
    assert plan.plan_config(least, plain(1)).samples_per_step == 1
    assert run.samples_per_step == 128 and run.steps == 5196  # 665,000 / 128, rounded up
    assert run.seconds(100, 0.4) == pytest.approx(5196 * 128 * run.work.total / (8 * 4e13))
    assert plan.plan_config(settings_of("finetune_packed") | {"train_cfg": {"max_iters": 7}}, plain(1)).steps == 7
    hours = f"{run.seconds(989, 0.4) / 3600:.1f} hours planned at 40% of 989 TFLOPS; not run yet"
    said = f"H100: {run.memory.total / GIB:.1f} of 80 GiB planned; 5,196 steps of 128 samples, at most {hours}"
    assert plan.sentence(run.memory, run, GPUS["H100"]) == said
    small = Plan("loss", {"weights": 60 * GIB, "nothing": 1}, {}, 3 * GIB)
    tables = plan.memory_table(small, plain(2), "H100", 80 * GIB), plan.strategies_table([(plain(2), small)], GIB)
    assert "".join(tables) == TABLES
    for available, words in ((9, "does not fit"), (10, "tight"), (11, "tight"), (12, "fits")):
        assert plan.verdict(Plan("loss", {"a": 10}, {"loss": 10}, 0), available) == words
    assert plan.duration(90) == "2 minutes" and plan.duration(2 * 3600) == "2.0 hours"
