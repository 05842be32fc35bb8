"""The contract: what it says is what the live model and optimizer hold; under every strategy in `test_strategy.py`."""

import json

from transformers import BitsAndBytesConfig

from tests.models.batches import LORA, build
from xtuner_plugins.engine.hooks.run_contract import CONTRACT_FILE, TITLE, describe_part, show


def test_packed_layers_count_their_weights(toy_base):
    quantization = dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    whole, packed = (build(toy_base, llm_lora=LORA, **own).parts() for own in ({}, {"llm_quantization": quantization}))
    for name, part in packed.items():
        expected = describe_part(name, whole[name])
        assert expected["held_in"] == "float32" and expected["frozen"] + expected["trainable"] > 0
        held = "4-bit nf4, float32" if name == "llm" else "float32"
        assert describe_part(name, part) == {**expected, "held_in": held}


def test_the_file_holds_what_the_table_shows(train):
    undecayed = {"optim_wrapper.paramwise_cfg.decay_norms_and_biases": False}
    run = train("run", projector_lr=5e-4, weight_decay=0.1, warmup_ratio=0.5, options=undecayed)
    output, contract = run.output, json.loads((run.work_dir / CONTRACT_FILE).read_text())
    assert f"{show(contract)}\n" in output and "is skipped" not in output  # MMEngine would warn of frozen parameters
    few = "warning: this run has 4 optimizer steps, too few to learn much: a step takes 1 micro-batches on each rank; "
    assert f"{few}lower accumulative_counts (and batch_size), or raise max_epochs\n" in output
    parts = {row["part"]: row["trainable"] for row in contract["parts"]}
    assert parts["visual_encoder"] == 0 < parts["projector"] < parts["llm"]
    groups = {(row["lr"], row["weight_decay"]): row["parameters"] for row in contract["optimizer"]["groups"]}
    assert len(groups) == len(contract["optimizer"]["groups"]) == 4  # of both: biases and norms, and other weights
    assert groups[5e-4, 0.1] + groups[5e-4, 0.0] == parts["projector"]
    assert groups[1e-3, 0.1] + groups[1e-3, 0.0] == parts["llm"]
    (file,), run = contract["data"]["files"], contract["run"]
    assert (file["samples"], file["seen"]) == (16, 16) and 1 < file["tiles"] < 3 and file["supervised"] > 2
    assert (run["steps"], run["done"], run["ranks"], run["batch_size"], run["seed"]) == (4, 0, 1, 4, 7)
    unseen = {**file, "name": "caption", "samples": 10, "seen": 0}
    lines = show({**contract, "data": {"files": [file, unseen], "summary": "data: 26 of 26"}}).splitlines()
    assert lines[0] == TITLE and lines[13:-1] == [
        f"  train            16{file['tokens']:>10,.0f}{file['supervised']:>12,.0f}{file['tiles']:>8.1f}",
        "  caption          10",
        "  data: 26 of 26",
        "  run: 4 optimizer steps, 0 of them done",
        "  step: 1 micro-batches of 4 on each of 1 ranks; 4 micro-batches per rank and epoch; seed 7",
    ]
