"""Small files of the same shape as the published ones, and items without files."""

import base64
import csv
import io
import itertools
import json
import random

import pytest

from xtuner_plugins.evaluation.items import Item
from xtuner_plugins.files import CACHE_VARIABLE
from xtuner_plugins.inference.questions import Question
from xtuner_plugins.toy.images import draw, make_scene


@pytest.fixture(scope="session")
def png():
    """Returns the bytes of a toy image, another for each number."""

    def make(number=0):
        buffer = io.BytesIO()
        draw(make_scene(random.Random(number), (1, 1))).resize((40, 30)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def write_tsv(tmp_path):
    """Writes rows as pandas writes them; returns the path."""

    def write(name, rows):
        path = tmp_path / name
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_lines(tmp_path):
    """Writes JSON lines (text as it is); returns the path."""

    def write(name, *records):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def put(tmp_path, png):
    """Writes toy images under these names in the folder of the test."""

    def write(*names):
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))

    return write


@pytest.fixture
def in_base64(png):
    """Returns a toy image as a cell of a TSV file holds it."""
    return lambda number=0: base64.b64encode(png(number)).decode()


@pytest.fixture
def make_item():
    """Returns an item with these right answers and facts."""
    numbers = itertools.count(1)

    def make(*expected, place="", **facts):
        number = next(numbers)
        return Item(Question(f"q{number}", "?"), expected, facts, place or f"own.jsonl:{number}")

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of the test."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"
