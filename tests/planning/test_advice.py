"""A suggestion is one that was planned again."""

from xtuner_plugins.planning.advice import advise
from xtuner_plugins.planning.memory import GIB, Plan

SETTINGS = dict(gradient_checkpointing=False, batch_size=4, accumulative_counts=2, max_tiles=12, max_length=4096)


def plan(gib):
    return Plan("loss", {"all": int(gib * GIB)}, {}, 0)


def test_what_saves_is_named_with_its_result():
    results = {"gradient_checkpointing=True": 31.2, "batch_size=2": 60, "batch_size=1": 85, "max_tiles=6": 99.99}
    lines = advise(SETTINGS, plan(100), 80 * GIB, lambda pairs: plan(results[pairs[0]]))
    assert lines == [
        "gradient_checkpointing=True saves 68.8 GiB: 31.2 of 80.0 GiB",
        "batch_size=2 accumulative_counts=4 saves 40.0 GiB: 60.0 of 80.0 GiB",
        "batch_size=1 accumulative_counts=8 saves 15.0 GiB: 85.0 of 80.0 GiB, which is not enough",
    ]


def test_room_to_spare():
    settings = dict(SETTINGS, gradient_checkpointing=True)
    results = {"gradient_checkpointing=False": 70, "batch_size=8": 81}
    lines = advise(settings, plan(20), 80 * GIB, lambda pairs: plan(results[pairs[0]]))
    assert lines == ["gradient_checkpointing=False fits too: 70.0 of 80.0 GiB"]


def test_packs_are_halved_and_no_settings_mean_no_advice():
    packed = dict(pack_tokens=8192, pack_tiles=26, batch_size=1, accumulative_counts=4, max_tiles=12, max_length=4096)
    seen = []
    advise(packed, plan(100), 80 * GIB, lambda pairs: seen.append(pairs) or plan(50))
    assert seen == [["pack_tokens=4096", "pack_tiles=13"]]
    assert advise({}, plan(100), 80 * GIB, None) == []
