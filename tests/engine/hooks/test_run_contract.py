"""The contract table: what it says is what the live model and optimizer hold, under every strategy."""

import re

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from xtuner_plugins.engine.hooks.run_contract import _compare_groups, count_parameters, held_in
from xtuner_plugins.models import VisionLanguageModel

from ..forked import train_forked
from ..parallel_case import logged, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def table(output):
    """{part: (trainable, frozen)} and [(parameters, lr, weight decay)] as printed."""
    number = r"([\d,]+)"
    parts = {
        name: (int(trainable.replace(",", "")), int(frozen.replace(",", "")))
        for name, trainable, frozen in re.findall(rf"^  (\w+) +{number} +{number}  \w", output, re.MULTILINE)
    }
    groups = re.findall(rf"optimizer group \d+: {number} parameters, lr (\S+), weight decay (\S+)", output)
    return parts, [(int(count.replace(",", "")), float(lr), float(decay)) for count, lr, decay in groups]


@pytest.mark.parametrize(
    "bits, held",
    [(dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "4-bit nf4"), (dict(load_in_8bit=True), "8-bit")],
)
def test_packed_layers_count_their_weights(toy_base, bits, held):
    lora = dict(type=LoraConfig, r=4, lora_alpha=8)
    quantization = dict(type=BitsAndBytesConfig, **bits)
    torch.manual_seed(0)
    whole = VisionLanguageModel(base=str(toy_base), dtype="float32", llm_lora=lora)
    packed = VisionLanguageModel(base=str(toy_base), dtype="float32", llm_lora=lora, llm_quantization=quantization)
    for name, part in packed.parts().items():
        assert count_parameters(part) == count_parameters(whole.parts()[name])
    assert held_in(packed.parts()["llm"]) == f"{held}, float32" and held_in(whole.parts()["llm"]) == "float32"


@pytest.mark.parametrize(
    "live", [[(10, 1e-3, 0.1), (5, 1e-3, 0.0)], [(15, 1e-3, 0.1)], [(10, 2e-3, 0.1), (5, 1e-4, 0.0)]]
)
def test_other_rates_than_the_config_asks_for_stop_the_run(live):
    planned = {(1e-3, 0.1): 10, (1e-4, 0.0): 5}
    _compare_groups(planned, [(4, 1e-3, 0.1), (6, 1e-3, 0.1), (5, 1e-4, 0.0)])
    with pytest.raises(RuntimeError, match=r"the config asks for 5 at lr 0.0001, weight decay 0; 10 at lr 0.001"):
        _compare_groups(planned, live)


GROUPED = {
    "optim_wrapper.paramwise_cfg.decay_norms_and_biases": False,
    "optim_wrapper.paramwise_cfg.part_lr.projector": 5e-4,
    "optim_wrapper.optimizer.weight_decay": 0.1,
    "param_scheduler.warmup_ratio": 0.5,
}


@pytest.fixture(scope="module")
def plain(toy_base, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run = train_forked(folder / "run", toy_base, data, options=GROUPED)
    assert run.ok, run.output[-2000:]
    return run.output, logged(folder / "run")


def test_groups_by_part_with_their_base_rates(plain):
    parts, groups = table(plain[0])
    assert "is skipped" not in plain[0]  # MMEngine would warn of each frozen parameter
    assert parts["visual_encoder"][0] == 0 and parts["projector"][0] > 0 and parts["llm"][0] > 0
    assert sum(count for count, _, _ in groups) == sum(trainable for trainable, _ in parts.values())
    by_rates = {(lr, decay): count for count, lr, decay in groups}
    assert len(by_rates) == len(groups) == 4  # of projector and LLM: biases and norms, and other weights
    assert by_rates[5e-4, 0.1] + by_rates[5e-4, 0.0] == parts["projector"][0]
    assert by_rates[1e-3, 0.1] + by_rates[1e-3, 0.0] == parts["llm"][0]


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_two_ranks_hold_and_train_the_same(plain, toy_base, data, tmp_path, deepspeed):
    run = train_forked(tmp_path / "run", toy_base, data, processes=2, deepspeed=deepspeed, options=GROUPED)
    assert run.ok, run.output[-3000:]
    parts, groups = table(run.output)
    expected_parts, expected_groups = table(plain[0])
    assert parts == expected_parts and sorted(groups) == sorted(expected_groups)
    assert logged(tmp_path / "run") == pytest.approx(plain[1], abs=1e-5)
