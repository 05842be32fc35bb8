"""What every tool shares: numbers that it takes, how it ends, and the model that its words name."""

import errno
from argparse import ArgumentTypeError
from unittest import mock

import pytest
import torch
from PIL import Image

from xtuner_plugins.cli.shared import (
    add_answers,
    add_model,
    add_weights,
    at_least,
    command,
    finish,
    make_parser,
    open_model,
)
from xtuner_plugins.errors import MediaError, SourceError
from xtuner_plugins.weights.errors import CheckpointError


def test_numbers_begin_with_the_lowest_and_are_finite():
    number = at_least(0.5, float)
    assert number("0.5") == 0.5 and number.__name__ == "float"
    for text in ("0.4", "inf", "nan"):
        with pytest.raises(ArgumentTypeError, match=f"{text}: give at least 0.5"):
            number(text)


def test_a_tool_ends_with_a_status_and_says_why(capsys):
    for outcome, status, said in (
        ([None], 0, ""),
        ([1], 1, ""),
        (ValueError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (
            OSError(errno.EEXIST, "File exists", "a"),
            2,
            "error: a: File exists; name another path, or give permission there\n",
        ),
        (OSError(errno.ENOSPC, "Disk full", "a"), 2, "error: a: Disk full; make room there\n"),
        (OSError(errno.ENOSPC, "Disk full"), 2, "error: a file: Disk full; make room there\n"),
        (SourceError("gone"), 2, "error: gone\n"),
        (RuntimeError("CUDA out of memory"), 2, "error: out of memory; try a smaller --limit; all is kept\n"),
        (KeyboardInterrupt(), 130, "\nstopped; all is kept\n"),
    ):
        assert finish(mock.Mock(side_effect=outcome), smaller="--limit", so_far="; all is kept") == status
        assert capsys.readouterr().err == said
    assert command(str, len)("two") == 3
    with pytest.raises(RuntimeError, match="shapes"):  # keeps its traceback
        finish(mock.Mock(side_effect=RuntimeError("shapes")))


def test_a_model_is_opened_as_the_words_say(toy_base):
    """A wrong path, then an image that can't be read, is said before weights are read."""
    add_model(parser := make_parser("A tool."))
    add_answers(parser)
    words = ["--device", "cpu", "--dtype", "bfloat16", "--max-tiles", "1", "--max-new-tokens", "1"]
    told = dict(model="m", checkpoint=None, template=None, device="auto", dtype="auto", max_tiles=None)
    assert vars(parser.parse_args(["m"])) == told | {"max_new_tokens": 512}
    add_model(optional := make_parser(""), optional=True)
    add_weights(weights := make_parser(""))
    assert optional.parse_args([]).model is None and vars(weights.parse_args([])) == {"dtype": None, "force": False}
    args = parser.parse_args([str(toy_base), *words])
    session = open_model(args)
    (tiles,) = session.tiles([Image.new("RGB", (700, 700))])
    assert (len(tiles), session.model.dtype, args.max_new_tokens) == (1, torch.bfloat16, 1)
    with pytest.raises(CheckpointError, match="has one template of its own"):
        open_model(parser.parse_args([str(toy_base), "--template", "Hermes-2"]))
    with pytest.raises(CheckpointError, match="none"):
        open_model(parser.parse_args(["none"]), ["none.png"])
    with mock.patch("xtuner_plugins.inference.opening.open_session") as opened, pytest.raises(MediaError, match="none"):
        open_model(args, ["none.png"])
    assert not opened.called
