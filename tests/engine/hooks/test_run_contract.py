"""The contract table: what it says is what the live model and optimizer hold, under every strategy."""

import json
import re

import pytest

from xtuner_plugins.engine.contract import show
from xtuner_plugins.engine.curves import CONTRACT_FILE
from xtuner_plugins.engine.hooks.run_contract import _compare_groups

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
    written = [path.read_text() for path in (folder / "run").rglob(CONTRACT_FILE)]
    assert len(written) == 2 and written[0] == written[1]
    return run.output, logged(folder / "run"), json.loads(written[0])


def test_groups_by_part_with_their_base_rates(plain):
    parts, groups = table(plain[0])
    assert "is skipped" not in plain[0]  # MMEngine would warn of each frozen parameter
    assert parts["visual_encoder"][0] == 0 and parts["projector"][0] > 0 and parts["llm"][0] > 0
    assert sum(count for count, _, _ in groups) == sum(trainable for trainable, _ in parts.values())
    by_rates = {(lr, decay): count for count, lr, decay in groups}
    assert len(by_rates) == len(groups) == 4  # of projector and LLM: biases and norms, and other weights
    assert by_rates[5e-4, 0.1] + by_rates[5e-4, 0.0] == parts["projector"][0]
    assert by_rates[1e-3, 0.1] + by_rates[1e-3, 0.0] == parts["llm"][0]


def test_the_file_holds_what_the_table_shows(plain):
    output, _, contract = plain
    assert output.startswith(show(contract)) or f"\n{show(contract)}\n" in output
    (file,) = contract["data"]["files"]
    assert (file["samples"], file["seen"]) == (16, 16) and 1 < file["tiles"] < 3 and file["supervised"] > 2
    run = contract["run"]
    assert (run["steps"], run["done"], run["ranks"], run["batch_size"], run["seed"]) == (4, 0, 1, 4, 7)
    assert run["tokens"] == 16 * round(file["tokens"])  # one epoch
    assert 0.5 < contract["estimate"]["memory_gib"] < 2 and contract["strategy"] == "one process"


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_two_ranks_hold_and_train_the_same(plain, toy_base, data, tmp_path, deepspeed):
    run = train_forked(tmp_path / "run", toy_base, data, processes=2, deepspeed=deepspeed, options=GROUPED)
    assert run.ok, run.output[-3000:]
    parts, groups = table(run.output)
    expected_parts, expected_groups = table(plain[0])
    assert parts == expected_parts and sorted(groups) == sorted(expected_groups)
    assert logged(tmp_path / "run") == pytest.approx(plain[1], abs=1e-5)
    contract = json.loads((tmp_path / "run" / CONTRACT_FILE).read_text())
    expected = "DDP on 2 ranks" if deepspeed is None else f"ZeRO-{deepspeed[-1]}, weights in float32"
    assert contract["strategy"].startswith(expected) and contract["estimate"]["note"].startswith("no time in advance")
    for key in ("steps", "tokens", "seed"):
        assert contract["run"][key] == plain[2]["run"][key]
