"""The interface of formats: every format offers it, and each directory is of one of them."""

import inspect

import pytest

from xtuner_plugins.export.draft import FORMATS
from xtuner_plugins.export.export import convert
from xtuner_plugins.weights.format import Format
from xtuner_plugins.weights.reading import CheckpointError


@pytest.mark.parametrize("name", FORMATS)
def test_each_offers_the_interface(name):
    members = [member for member in vars(Format).values() if inspect.isfunction(member) and member.__name__[0] != "_"]
    assert len(members) == 6
    read = ("detect", "read_config")
    for member in members if name != "llava" else [m for m in members if m.__name__ not in read]:
        wanted = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
        assert list(inspect.signature(getattr(FORMATS[name], member.__name__)).parameters) == wanted
    assert FORMATS[name].NAME == name and hasattr(FORMATS[name], "PROCESSOR_TOKEN")


def test_unknown_format(tmp_path, toy_parts):
    with pytest.raises(CheckpointError, match="not an official InternVL directory"):
        convert(toy_parts[1], tmp_path / "out", format="hf")
