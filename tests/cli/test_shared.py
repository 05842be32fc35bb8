"""What every tool shares: numbers that it takes, how it ends, and the model that its words name."""

from argparse import ArgumentTypeError
from unittest import mock

import pytest
from PIL import Image

from xtuner_plugins.cli.shared import add_answers, add_model, at_least, finish, make_parser, open_model
from xtuner_plugins.errors import MediaError


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
        (RuntimeError("CUDA out of memory"), 2, "error: out of memory; try a smaller --limit; all is kept\n"),
        (KeyboardInterrupt(), 130, "\nstopped; all is kept\n"),
    ):
        assert finish(mock.Mock(side_effect=outcome), smaller="--limit", so_far="; all is kept") == status
        assert capsys.readouterr().err == said
    with pytest.raises(RuntimeError, match="shapes"):  # keeps its traceback
        finish(mock.Mock(side_effect=RuntimeError("shapes")))


def test_a_model_is_opened_as_the_words_say(toy_base):
    """An image that can't be read is said before weights are read."""
    add_model(parser := make_parser("A tool."))
    add_answers(parser)
    args = parser.parse_args([str(toy_base), "--max-tiles", "1"])
    (tiles,) = open_model(args).tiles([Image.new("RGB", (700, 700))])
    assert (len(tiles), args.max_new_tokens) == (1, 512)
    with mock.patch("xtuner_plugins.inference.opening.open_session") as opened, pytest.raises(MediaError, match="none"):
        open_model(args, ["none.png"])
    assert not opened.called
