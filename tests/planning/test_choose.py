"""Runs planned for one GPU: what is chosen fits, and what doesn't fit names something that does."""

import json
import re
from dataclasses import replace
from itertools import product
from unittest import mock

import pytest
import torch

from xtuner_plugins.planning.choose import SHARE, choose
from xtuner_plugins.planning.hardware import GPU, GPUS, find_gpu, gpu_of_device
from xtuner_plugins.planning.job import plain
from xtuner_plugins.planning.memory import GIB
from xtuner_plugins.planning.plan import plan_config
from xtuner_plugins.settings import SETTINGS, ConfigError, read_config

MEMORIES, SIZES = (12, 16, 24, 80), ("1B", "2B", "4B", "8B", "30B-A3B")
STEPS = {"finetune_full": 128, "finetune_lora": 16, "finetune_qlora": 16}


# GiB and dense half-precision TFLOPS with float32 sums: the code's own table once more, so that a slip is seen.
SHEETS = """H200 140 989|H100 80 989|H20 96 148|A100 80 312|A100-40 40 312|L40S 48 362|A6000 48 155|5090 32 209
4090 24 165|3090 24 71|A10 24 125|L4 24 121|4060Ti-16 16 44|T4 16 65"""


def base_of(size):
    return {"model.base": f"models/InternVL3_5-{size}"}


def named(run, *names):
    return tuple(run.changes.get(SETTINGS[name].key) for name in names)


def test_every_run_fits_or_is_refused_with_one_that_fits():
    chosen = {}  # (GB, size, recipe) -> the run, or the refusal
    for memory, size, recipe in product(MEMORIES, SIZES, STEPS):
        try:
            chosen[memory, size, recipe] = choose(recipe, base_of(size), replace(GPUS["H100"], memory=memory))
        except ConfigError as error:
            chosen[memory, size, recipe] = error
    for (memory, size, recipe), run in chosen.items():
        if isinstance(run, ConfigError):
            nearest = re.search(r"the nearest that fits: (\w+) with models/InternVL3_5-(\S+) \(", str(run))
            assert not isinstance(chosen[memory, nearest[2], nearest[1]], ConfigError), (memory, size, recipe)
            continue
        again = plan_config(read_config(recipe, run.changes)._to_lazy_dict(), plain(1))  # as `xtp plan` sees the file
        assert again.memory.total == run.memory.total <= SHARE * memory * GIB
        assert again.samples_per_step == STEPS[recipe]
    for key, *values in (
        ((16, "4B", "finetune_lora"), 12, 8192, 1, None),
        ((16, "1B", "finetune_full"), 12, 8192, 2, "AdamW8bit"),  # before resolution is lost
        ((24, "8B", "finetune_lora"), 12, 4096, 1, None),
        ((80, "2B", "finetune_full"), 12, 8192, 8, None),
    ):
        found = named(chosen[key], "max_tiles", "max_length", "batch_size", "optimizer")
        assert repr(found) == repr(tuple(values)), key  # whole numbers
    assert "the nearest that fits: finetune_lora with models/InternVL3_5-8B (" in str(chosen[80, "8B", "finetune_full"])


def test_the_number_of_records_decides_epochs_and_intervals(tmp_path):
    record, path = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, tmp_path / "a"
    data = {SETTINGS["data_paths"].key: [f"{path}.jsonl"], SETTINGS["image_folders"].key: [None]}
    for count, steps, *intervals in ((200, 38, 3, 8, 8), (5000, 313, None, 63, 63)):
        path.with_suffix(".jsonl").write_text((json.dumps(record) + "\n") * count)
        run = choose("finetune_lora", {**base_of("2B"), **data}, GPUS["4090"])
        assert run.plan.steps == steps
        assert named(run, "max_epochs", "save_steps", "val_interval") == tuple(intervals), count


def test_what_is_given_stays_and_the_rest_is_chosen_around_it():
    given = {**base_of("2B"), SETTINGS["batch_size"].key: 4, SETTINGS["max_tiles"].key: 3, "model.dtype": "float32"}
    run = choose("finetune_lora", given, GPUS["4090"])
    assert given.items() <= run.changes.items()
    assert named(run, "max_length", "accumulative_counts") == (4096, 4)
    many = choose("finetune_lora", {**given, SETTINGS["batch_size"].key: 32}, find_gpu("H200"))
    assert named(many, "accumulative_counts") == (1,)  # more than the recipe's step has
    packed = choose("finetune_packed", base_of("1B"), GPUS["T4"])
    assert named(packed, "batch_size", "accumulative_counts") == (1, 32)  # packs of a step, as on 8 GPUs
    assert named(packed, "pack_tokens", "pack_tiles", "dtype") == named(packed, "max_length") + (26, "float16")
    for recipe, settings, gpu, words in (
        ("finetune_lora", given, "T4", "15.1 GiB at least, .* the same without the values of --set "),
        ("finetune_mpo_full", base_of("2B"), "4090", "fits: finetune_dpo_lora with models/InternVL3_5-2B "),
        ("pretrain_mlp", {}, "4GB", "takes .* at least, .* nothing of this release fits"),
    ):
        with pytest.raises(ConfigError, match=words):
            choose(recipe, settings, find_gpu(gpu))


def test_a_machine_has_workers_for_its_cores(monkeypatch):
    for cores, workers in ((1, 1), (4, 3), (64, 8)):
        monkeypatch.setattr("xtuner_plugins.planning.choose.num_cores", lambda own=cores: own)
        assert named(choose("finetune_lora", base_of("1B"), GPUS["H100"]), "num_workers") == (workers,)


def test_words_that_name_a_gpu(monkeypatch):
    cards = {name: (int(memory), int(peak)) for name, memory, peak in map(str.split, re.split(r"[|\n]", SHEETS))}
    assert {name: (gpu.memory, gpu.teraflops) for name, gpu in GPUS.items()} == cards
    slowest = replace(GPUS["3090"], name="24 GB, as 3090")
    assert [find_gpu(words) for words in ("4060ti-16", "24GB", "24 gib")] == [GPUS["4060Ti-16"], slowest, slowest]
    assert find_gpu("12gb") == GPU("12 GB", 12, 0)  # no card has so many
    with pytest.raises(ValueError, match="--gpu 4091: give memory as 24GB"):
        find_gpu("4091")
    here = find_gpu("auto")
    assert here.is_cpu and here.memory > 1 and here.teraflops > 0  # on a machine without a GPU
    cuda = {"is_bf16_supported.return_value": False, "get_device_properties.return_value.total_memory": 15 * GIB}
    monkeypatch.setattr(torch, "cuda", mock.Mock(**cuda))
    for name, card in (("Tesla T4", GPUS["T4"]), ("GTX 1080", GPU("GTX 1080", 0, 0, dtype="float16"))):
        torch.cuda.get_device_name.return_value = name
        assert find_gpu("auto") == replace(card, memory=15.0) and find_gpu("cpu").is_cpu
    assert gpu_of_device("NVIDIA H100 80GB HBM3").name == "H100" and gpu_of_device("A100-PCIE-40GB").name == "A100-40"
    assert gpu_of_device("NVIDIA GeForce RTX 4090 Laptop GPU") is None  # with another peak
