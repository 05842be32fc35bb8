"""The ranges of settings: their ends, credentials and URLs that are refused, and room for tiles."""

import math
from functools import partial

import pytest

from xtuner_plugins import ranges
from xtuner_plugins.errors import SettingError

ENDS = {  # values that a setting can have, and those that it can't; the first five as their libraries have them
    "lr": ((0, 0.0, 1e-4, 1), (-1, -1e-9, "abc")),
    "weight_decay": ((0, 0.1), (-1, -1e-9, "a")),
    "batch_size": ((1, 7), (-1, 0, 0.5, "a")),
    "num_workers": ((0, 1), (-1, "a")),
    "lora_rank": ((1, 64), (-1, 0)),
    "lora_dropout": ((0, 0.5), (-0.1, 1, "a", math.nan)),
    "drop_path": ((0, 0.4), (-0.1, 1)),
    "loss_reduction": (("token", "sample", "square"), ("mean", 1, ["token"])),
    "warmup_ratio": ((0, 0.03), (-0.1, 1)),
    "dtype": (("auto", "bfloat16", "float16", "float32"), ("half", 3)),
    "max_grad_norm": ((0.1, 1, math.inf), (0, -1, math.nan, "a")),
    "beta": ((0.1, 2), (0, -1, "a", True, math.inf)),
    "label_smoothing": ((0, 0.1, 0.49), (0.5, -0.1)),
    "simpo_margin": ((0, 1.5), (-1, math.nan, math.inf)),
    "projector_lr": ((1e-9, 0.9), (0, 1, "a")),
    "save_steps": ((-1, 1, 500), (0, -2, 1.5)),
    **dict.fromkeys(("accumulative_counts", "val_interval", "pack_tiles"), ((1, 7), (0, -1, 1.5, True, "a"))),
}


OBJECTIVES = ({}, None, ["dpo"], {"ppo": 1.0}, {"dpo": 0}, {"dpo": "1"}, {"sft": True}, {"sft": math.nan})


def test_ends_of_ranges():
    rows = [(partial(ranges.check, name), *values) for name, values in ENDS.items()]
    rows.append(
        (lambda limits: ranges.check_tiles(*limits), [(1, 1), (1, 256)], [(0, 1), (2, 1), (1, 257), (1, 2.0), (1, "2")])
    )
    rows.append((ranges.check_objectives, [{"dpo": 0.8, "sft": 1}], OBJECTIVES))
    for check, right, wrong in rows:
        for value in right:
            check(value)
        for value in wrong:
            with pytest.raises((ValueError, TypeError)):
                check(value)


def test_room_counts_the_thumbnail_and_both_ends():
    ranges.check_room(1, True, 16, 19)  # 16 + 2 tokens, and one of text
    ranges.check_room(2, True, 16, 51)  # a thumbnail: 48 + 2
    for most, limit, said in (
        (2, 50, "means images of 50 .*; lower max_tiles to 1 or raise .* above 50"),
        (1, 18, "but max_length=18; raise max_length above 18"),
    ):
        with pytest.raises(SettingError, match=said):
            ranges.check_room(most, True, 16, limit)
    assert ranges.image_tokens([3, 1], 16) == 68


def test_a_credential_is_refused_and_never_shown():
    for value in (
        *({name: "hunter2"} for name in ("key", "secret", "token", "password", "accessKeyId", "sas_token")),
        {"client_kwargs": [{"aws_session_token": b"hunter2"}]},
        {"headers": {"Authorization": "Bearer hunter2"}},
        {"endpoint_url": "http://user:hunter2@host"},
    ):
        with pytest.raises(SettingError, match="a credential itself .*environment variables .* by profile=") as error:
            ranges.check_storage_options(value)
        assert "hunter2" not in str(error.value)
    ranges.check_storage_options({"endpoint_url": "http://127.0.0.1:9000", "anon": True, "profile": "mine"})
    for token in ("anon", "/home/me/key.json"):
        ranges.check_storage_options({"token": token, "ssl_key_file": "/etc/key.pem", "key": None, "secret": ""})
    for value in ("s3", [], {1: 2}):
        with pytest.raises(SettingError, match="storage_options"):
            ranges.check_storage_options(value)


def test_urls_of_kinds_that_arent_read():
    ranges.check_store_url("file:///a")
    for url, said in {
        "ftp://me:hunter2@h/a": r"ftp://\*\*\*@h/a is a URL of a kind .*; there are file, s3, ",
        "s3://key:hunter2@b/a": r"s3://\*\*\*@b/a holds a credential itself, .*environment variables",
    }.items():
        with pytest.raises(SettingError, match=said):
            ranges.check_store_url(url)
