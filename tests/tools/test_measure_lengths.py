"""The tool in this process: a config's lengths measured whole, in shards, and merged."""

import importlib.util
import json
import sys

import pytest

from tests.conftest import ROOT
from xtuner_plugins.toy.small_data import write_dataset


@pytest.fixture
def measure(monkeypatch, capsys):
    """measure(*args) -> (status, the last line that was printed)."""
    spec = importlib.util.spec_from_file_location("measure_lengths", ROOT / "tools/measure_lengths.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["measure_lengths.py", *map(str, args)])
        try:
            status = tool.main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, (printed.err if status else printed.out).splitlines()[-1]

    return call


def indices(cache):
    """The files of every index in a cache, by key and name."""
    return {(path.parts[-3], path.name): path.read_bytes() for path in cache.glob("*/arrays-*/*")}


def test_shards_of_a_recipe_become_the_index_that_training_finds(measure, toy_base, tmp_path, monkeypatch):
    data, images = write_dataset(tmp_path / "data", 12)
    config = ("toy_finetune_packed", "--set", f"base={toy_base}", f"data_paths={data}", f"image_folders={images}")
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "local"))
    assert measure(*config, "--workers", 1) == (0, f"12 records measured into {tmp_path / 'local'}")
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "merged"))
    out = tmp_path / "shards"
    assert measure(*config, "--shard", "1/2", "--out", out) == (0, f"shard 1/2: 12 records measured into {out}")
    status, said = measure(*config, "--merge", out)
    assert status == 2 and said.startswith("error: shard 2 of 2 missing; measure")
    assert measure(*config, "--shard", "2/2", "--out", out) == (0, f"shard 2/2: 0 records measured into {out}")
    assert measure(*config, "--merge", out) == (0, f"12 records merged into {tmp_path / 'merged'}")
    assert indices(tmp_path / "merged") == indices(tmp_path / "local") != {}
    status, said = measure(*config, "tokenizer=1", "--merge", out)
    assert status == 2 and "tokenizer" in said


def test_unusable_records_are_told(measure, toy_base, tmp_path, monkeypatch):
    data, images = write_dataset(tmp_path / "data", 12)
    good = data.read_text().splitlines()
    data.write_text("\n".join([good[0], '{"text": 1}', good[2].replace("2.png", "none.png"), "{}", *good[4:]]))
    config = ("toy_finetune_packed", "--set", f"base={toy_base}", f"data_paths={data}", f"image_folders={images}")
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
    told = "3 of them unusable (2 no_conversations, 1 image_missing); mend them, or leave them out: reject_list"
    first = f"the first: {data}:2: no conversations"
    status, said = measure(*config, "--workers", 1)
    assert status == 0 and f"12 records measured into {tmp_path / 'cache'}, {told}" in said and first in said
    measure(*config, "--shard", "1/1", "--out", tmp_path / "shards")
    status, said = measure(*config, "--merge", tmp_path / "shards")
    assert status == 0 and f"12 records merged into {tmp_path / 'cache'}, {told}" in said and first in said
    reject = tmp_path / "bad.jsonl"
    reject.write_text("".join(json.dumps({"file": str(data), "row": row}) + "\n" for row in (1, 2)))
    option = f"train_dataloader.dataset.reject_list={reject}"
    status, said = measure(*config, "--cfg-options", option)
    assert status == 0 and "1 of them unusable (1 no_conversations)" in said and f"{data}:4: " in said


@pytest.mark.parametrize(
    "args, words",
    [
        (("no_such",), "config no_such does not exist"),
        (("toy_finetune_packed", "--shard", "1/2"), "--shard and --out go together"),
        (("toy_finetune_packed", "--out", "there"), "--shard and --out go together"),
        (("toy_finetune_packed", "--shard", "1/2", "--merge", "there"), "not allowed with"),
        (("toy_finetune_packed", "--shard", "3/2", "--out", "there"), "error: 3/2 is no shard; give K/N with K from 1"),
        (("toy_finetune_packed", "--shard", "1-2", "--out", "there"), "error: '1-2' is no shard; write K/N, for"),
        (("toy_finetune_packed", "--merge", "nowhere"), "error: no shard in nowhere; measure all of them with"),
        (("toy_finetune_packed", "--workers", "0"), "--workers is 1 or more"),
    ],
)
def test_refusals(measure, args, words):
    status, said = measure(*args)
    assert status == 2 and words in said
