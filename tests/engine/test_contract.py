"""The contract of a run: counts of live parts, and the table that is made of it."""

import json

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from xtuner_plugins.datasets.figures import FileFigures
from xtuner_plugins.engine.contract import TITLE, count_parameters, held_in, mean_sample, show
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.planning.job import Batch


def test_packed_layers_count_their_weights(toy_base):
    lora = dict(type=LoraConfig, r=4, lora_alpha=8)
    quantization = dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    torch.manual_seed(0)
    whole = VisionLanguageModel(base=str(toy_base), dtype="float32", llm_lora=lora)
    packed = VisionLanguageModel(base=str(toy_base), dtype="float32", llm_lora=lora, llm_quantization=quantization)
    for name, part in packed.parts().items():
        assert count_parameters(part) == count_parameters(whole.parts()[name])
    assert held_in(packed.parts()["llm"]) == "4-bit nf4, float32" and held_in(whole.parts()["llm"]) == "float32"


def test_the_mean_of_a_mixture_weighs_files_by_their_samples():
    one, none = FileFigures("a", 30, 100.0, 2.0, 10.0, 5, False), FileFigures("c", 7, *[float("nan")] * 3, 0, False)
    assert mean_sample([one, FileFigures("b", 10, 500.0, 6.0, 50.0, 5, True), none]) == Batch(200, 3, 20)
    assert mean_sample([none]) is None and mean_sample([]) is None


CONTRACT = {
    "parts": [{"part": "llm", "trainable": 193856, "frozen": 0, "held_in": "float32"}],
    "optimizer": {"name": "AdamW", "groups": [{"parameters": 193856, "lr": 1e-3, "weight_decay": 0.05}]},
    "strategy": "DDP on 8 ranks",
    "data": {
        "samples": 60,
        "summary": "data: 60 of 60 samples will train",
        "files": [
            {
                "name": "ocr",
                "samples": 50,
                "tokens": 812.4,
                "tiles": 3.25,
                "supervised": 64.0,
                "seen": 50,
                "is_measured": True,
            },
            {
                "name": "caption",
                "samples": 10,
                "tokens": None,
                "tiles": None,
                "supervised": None,
                "seen": 0,
                "is_measured": False,
            },
        ],
    },
    "run": {
        "steps": 1000,
        "done": 10,
        "epochs": 1,
        "ranks": 8,
        "micro_batches": 2,
        "micro_batches_per_epoch": 2000,
        "batch_size": 4,
        "seed": 42,
        "tokens": 51_000_000,
    },
    "estimate": {"memory_gib": 61.24, "seconds": 7200.0, "gpu": "H100", "utilization": 0.4, "note": None},
    "checkpoints": [{"interval": 500, "kept": 2, "resumable": False}],
    "log": "work_dirs/a/1/1.log",
}


def test_the_table():
    lines = show(json.loads(json.dumps(CONTRACT))).splitlines()
    assert lines[0] == TITLE
    assert lines[4:] == [
        "  optimizer group 0: 193,856 parameters, lr 0.001, weight decay 0.05",
        "  strategy: DDP on 8 ranks",
        "  data        samples    tokens  supervised   tiles  (mean of a sample)",
        "  ocr              50       812          64     3.2",
        "  caption          10  seen: 0, lengths aren't measured",
        "  data: 60 of 60 samples will train",
        "  run: 1,000 optimizer steps, 10 of them done, about 51,000,000 tokens",
        "  step: 2 micro-batches of 4 on each of 8 ranks; 2,000 micro-batches per rank and epoch; seed 42",
        "  planned: 61.2 GiB on each GPU, 2.0 hours on H100 at 40% of its peak",
        "  checkpoints: weights only (save_optimizer=False): not resumable",
        "  log file: work_dirs/a/1/1.log",
    ]


def test_why_there_is_no_estimate():
    why = {"memory_gib": None, "seconds": None, "gpu": None, "utilization": None, "note": "no estimate: no recipe"}
    assert "  no estimate: no recipe" in show({**CONTRACT, "estimate": why}).splitlines()
