"""Values of ``--cfg-options``: MMEngine's own stay as they are, and dicts arrive whole."""

import argparse

import pytest
from mmengine.config import Config, DictAction

from tests.conftest import ROOT
from xtuner_plugins.cli.arguments import OptionsAction, parse_options, read_changed
from xtuner_plugins.config_file import ConfigError, lay_over

CONFIG = str(ROOT / "configs/internvl_v3/internvl_v3_qwen2_5_1b_finetune.py")
DATA = "train_dataloader.dataset"
# What MMEngine documents of its values, and texts that people give.
MMENGINES = [
    *("1", "-1", "1.5", "1e-4", "true", "False", "None", "nan", "", "word", "'word'", '"a"', "a=b", "a b", "1 2"),
    *(
        "1,2",
        "a,b",
        "[1,2]",
        "[1]",
        "[]",
        "()",
        "(1,2)",
        "(1,)",
        "[a, b]",
        "['a b', \"c\"]",
        "[(1,2),[3,4],c]",
        "[1,[]]",
    ),
    *("a.jsonl,b.jsonl", "/data/a b/c.jsonl", "C:\\data\\a.jsonl", "s3://bucket/a.jsonl,s3://bucket/b.jsonl"),
    *(
        "https://x.org/a?b=c&d=[e]",
        "shards/{000..009}.tar",
        "{a,b}.jsonl",
        "[{a,b}]",
        "{{ fileDirname }}/x",
        "{{_base_.x}}",
    ),
    *("(a", "a(b)", "**/*.parquet", "[None,None]", "'{\"a\": 1}'", "dict", "hdfs://h:9/{x}", ",", "[,]"),
]


@pytest.mark.parametrize("text", MMENGINES)
def test_values_are_those_of_mmengine(text):
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    theirs = parser.parse_args(["--cfg-options", f"a.b={text}", "c=1"]).cfg_options
    assert repr(parse_options([f"a.b={text}", "c=1"])) == repr(theirs)


def test_dicts_arrive_whole():
    words = ['a={"jpeg_quality": (75, 100), "crop": 1.5}', "b=[dict(windows_paths=True),None]", "c=1,2", "a=dict(x=1)"]
    assert parse_options(words) == {"a": {"x": 1}, "b": [{"windows_paths": True}, None], "c": [1, 2]}
    assert parse_options([]) is None


@pytest.mark.parametrize(
    "word, message",
    [
        ("a.b=[(1,2]", r"a.b=\[\(1,2\]: its brackets don't match; write a Python literal"),
        ("a.b=x(1,2)", "commas in brackets after other text; write"),
        ('a.b={"crop":1.5', "'{' was never closed; write"),
        ("a.b={crop:1.5}", "crop is no number and not in quotes; write"),
        ("a.b", "a.b: takes KEY=VALUE pairs"),
    ],
)
def test_what_cannot_be_read_is_refused(word, message):
    with pytest.raises(ConfigError, match=f"^--cfg-options .*{message}") as caught:
        parse_options(["c=1", word])
    assert "\n" not in str(caught.value)


def test_a_dict_takes_the_place_of_the_value():
    """Of None, of another dict, and where there was none."""
    for word in ('augment={"crop":1.5}', "backend_args=dict(anon=True)", "new={'a':1}", "max_tiles=dict(a=2)"):
        key, value = word.split("=", 1)
        config = read_changed(CONFIG, [], [f"{DATA}.{word}"])
        assert config.train_dataloader.dataset[key] == eval(value)
    config = read_changed(CONFIG, ["augment={'crop': 1.5}"], [f"{DATA}.augment=dict(jpeg_quality=(75,100))"])
    assert config.train_dataloader.dataset.augment == {"jpeg_quality": (75, 100)}
    config = read_changed(CONFIG, ["augment={'crop': 1.5}"], [f"{DATA}.augment.jpeg_quality=(75,100)"])
    assert config.train_dataloader.dataset.augment == {"crop": 1.5, "jpeg_quality": (75, 100)}
    config = read_changed(CONFIG, [], [f"{DATA}.dataset_settings=[dict(windows_paths=True)]"])
    assert config.train_dataloader.dataset.dataset_settings == [{"windows_paths": True}]


def test_members_of_lists():
    config = read_changed(CONFIG, [], ["custom_hooks.0.mine=1", "custom_hooks.1={'a': 2}"])
    assert config.custom_hooks[0].mine == 1 and config.custom_hooks[1].a == 2
    assert "_delete_" not in config.custom_hooks[1]


@pytest.mark.parametrize(
    "word, message",
    [
        (
            "augment.jpeg_quality=(75,100)",
            rf"{DATA}.augment is None in the config and has no 'jpeg_quality'; give all of it: "
            rf"{DATA}.augment='{{\"jpeg_quality\": ...}}', or with --set augment=...",
        ),
        (
            "max_tiles.x.y=1",
            f"max_tiles is 12 in the config and has no 'x.y'; give all of it: {DATA}.max_tiles=..., or",
        ),
        ("data_paths.0=a.jsonl", f"one value of a list can't be set; give all of {DATA}.data_paths"),
        ("data_paths.5=a.jsonl", f"{DATA}.data_paths is a list of 1, which has no '5'; give an index, from 0 on, or"),
        ("data_paths.x.y=1", f"{DATA}.data_paths is a list of 1, which has no 'x'; give"),
    ],
)
def test_keys_in_values_that_have_none(word, message):
    with pytest.raises(ConfigError) as caught:
        read_changed(CONFIG, [], [f"{DATA}.{word}"])
    assert message.replace(r"\"", '"') in str(caught.value) and "\n" not in str(caught.value)


def test_xtuner_makes_the_same_of_what_is_handed_on():
    words = [f"{DATA}.augment={{'crop': 1.5}}", f"{DATA}.new=dict(a=1)", "train_cfg.max_iters=2"]
    ours, theirs = Config.fromfile(CONFIG), Config.fromfile(CONFIG)
    theirs.merge_from_dict(lay_over(ours, parse_options(words)))
    assert ours.to_dict() == theirs.to_dict() == read_changed(CONFIG, [], words).to_dict()
    assert OptionsAction._parse_iterable("{'_delete_': True}") == {"_delete_": True}
