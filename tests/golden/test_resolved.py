"""Every config resolves to what is kept; only what changes a run counts as a difference."""

import copy
import json

import pytest

from tests.conftest import ROOT
from tests.golden import resolved


@pytest.fixture(scope="module")
def kept():
    return resolved.read()


def test_every_config_resolves_to_the_kept_one(kept):
    new = resolved.today()
    assert "\n".join(resolved.differences(kept, new)) == ""
    assert str(ROOT) not in json.dumps(new)


def changed(kept, change):
    new = copy.deepcopy(kept)
    change(new["configs"]["toy_finetune_lora"], new["defaults"])
    return [line.removeprefix("toy_finetune_lora: ") for line in resolved.differences(kept, new)]


def test_a_default_may_be_written_out_or_not(kept):
    def write_out(config, defaults):
        config["model"]["llm_lora"]["bias"] = "none"
        config["train_cfg"]["dynamic_intervals"] = None
        config["optim_wrapper"]["paramwise_cfg"]["loraplus_lr_ratio"] = 1
        config["env_cfg"]["cudnn_benchmark"] = False
        config["randomness"]["deterministic"] = False
        config["resume"] = False

    def move_into_the_class(config, defaults):
        defaults["xtuner_plugins.StepLineHook"]["interval"] = config["default_hooks"]["logger"].pop("interval")

    assert changed(kept, write_out) == changed(kept, move_into_the_class) == []


def test_what_changes_a_run_is_named(kept):
    def change_values(config, defaults):
        config["model"]["llm_lora"]["r"] = 8
        config["param_scheduler"]["type"] = "mmengine.LinearLR"
        config["custom_hooks"].pop()

    def change_a_default(config, defaults):
        defaults["peft.LoraConfig"]["bias"] = "all"

    lora, scheduler = "model.llm_lora.r=8, kept 16", "param_scheduler.type='mmengine.LinearLR', kept "
    (line,) = changed(kept, change_values)
    assert (
        lora in line and scheduler in line and "custom_hooks.5.type=None, kept 'xtuner_plugins.ImageGainHook'" in line
    )
    assert "model.llm_lora.bias='all', kept 'none'" in changed(kept, change_a_default)


def test_configs_that_came_or_went_are_named(kept):
    configs = kept["configs"]
    renamed = {"mine" if name == "pretrain_mlp" else name: config for name, config in configs.items()}
    assert resolved.differences(kept, kept | {"configs": renamed}) == ["mine: not kept", "pretrain_mlp: gone"]
