"""Ranks that find different data stop with one line instead of waiting for each other for ever."""

import os
import sys
from functools import partial

import pytest

from tests.engine.forked import train_forked
from tests.engine.parallel_case import write_dataset

pytestmark = pytest.mark.slow


def read_other_file_on_rank_1(path, other):
    """As on a second node whose copy of the annotations is older."""
    if os.environ["RANK"] == "1":
        sys.argv = [word.replace(str(path), str(other)) for word in sys.argv]


@pytest.mark.parametrize("recipe", ["toy_finetune_full", "toy_finetune_packed"])
def test_another_number_of_records(toy_base, tmp_path, recipe):
    path, images = write_dataset(tmp_path / "data")
    other = path.with_name("older.jsonl")
    other.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    case = dict(processes=2, config=f"configs/toy/{recipe}.py", options={"train_dataloader.batch_size": 1})
    case["prepare"] = partial(read_other_file_on_rank_1, path, other)
    run = train_forked(tmp_path / "run", toy_base, (path, images), **case)
    assert run.codes == [1, 1], run.output[-2000:]
    [line] = run.errors
    assert "the ranks don't find the same data" in line and "error" not in run.others
