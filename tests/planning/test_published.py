"""Facts of released models: the learning rate that fits each."""

from xtuner_plugins.planning.published import released_rate
from xtuner_plugins.settings import leaves, read_config


def test_a_released_base_has_the_rate_of_its_size():
    for base, *rates in (
        ("models/InternVL3_5-1B", 1e-5, 1e-4),
        ("/data/InternVL3-8B-Instruct", 2e-5, 1e-4),
        ("models/InternVL3_5-30B-A3B", 2e-5, 5e-5),
        ("models/InternVL2_5-8B", 4e-5, 1e-4),
        ("models/InternVL-Chat-V1-5", 2e-5, 5e-5),
        ("exports/pretrain_mlp", None, None),
    ):
        assert [released_rate(base, has_lora=has_lora) for has_lora in (False, True)] == rates, base


def test_leaves_have_the_rate_of_their_base():
    """The leaves of released models state it; one table must not say another thing than they do."""
    for name in leaves():
        config = read_config(name)
        model = config.model
        if "objectives" in model or name == "internvl_v3_5_sft" or not config.filename.count("/internvl_v"):
            continue
        rate = released_rate(model.base, has_lora=bool(model.get("llm_lora")))
        assert rate == config.optim_wrapper.optimizer.lr, name
