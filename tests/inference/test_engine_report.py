"""Every engine is run or named with the reason why it wasn't; files hold what was found."""

import json
import sys

import pytest
from PIL import Image

from xtuner_plugins.inference import engine_report
from xtuner_plugins.inference.compare_engines import STAGES, Comparison, Finding
from xtuner_plugins.inference.engine_report import Report, Settings, details, run_engines, write_json, write_page
from xtuner_plugins.inference.engines import EngineError, Reading
from xtuner_plugins.inference.questions import Question

TOKENS = 73  # of the question below about three tiles of 16 tokens


def stand_in(engine, tells):
    """A class in place of an engine's: tells that many prompt tokens, or raises that error when it is opened."""

    class StandIn:
        name = engine

        def __init__(self, *args, **options):
            if isinstance(tells, Exception):
                raise tells

        def read(self, question, images, max_new_tokens, top):
            return Reading("<b>", tells)

    return StandIn


@pytest.fixture
def asked(toy_base, tmp_path, monkeypatch):
    """Runs with stand-ins."""
    Image.effect_noise((225, 113), 90).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")

    def run(*names, transformers=TOKENS, llama=TOKENS, **settings):
        for kind, name, tells in (
            ("TransformersEngine", "transformers", transformers),
            ("LlamaCppEngine", "llama.cpp", llama),
            ("ServerEngine", "server", EngineError("can't be reached")),
        ):
            monkeypatch.setattr(engine_report, kind, stand_in(name, tells))
        given = {"gguf": (tmp_path, tmp_path), "hf": tmp_path, "device": "cpu", "max_new_tokens": 1, **settings}
        questions = [Question(name, "Where?", (name,), (str(tmp_path / name),)) for name in names]
        return run_engines(str(toy_base), questions, Settings(**given))

    return run


def test_tiles_part_and_the_advice_is_given(asked, tmp_path):
    report = asked("a.png", transformers=None, llama=TOKENS + 4 * 16)
    assert report.total("llama.cpp") == "0 of 1 agree; 1 part at tiles"
    assert details(report, "llama.cpp") == {
        "a.png": "tiles: 7 instead of 3 (2x1 and a thumbnail), by the prompt's length"
    }
    assert "--resize-to-grid" in report.advice["llama.cpp"][0] and not report.agrees
    assert set(report.not_run) == {"vLLM", "SGLang", "lmdeploy"}

    write_json(tmp_path / "r.json", report)
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (row,) = found["engines"]["llama.cpp"]["questions"]
    assert (
        row["parts_at"] == "tiles" and list(row["stages"]) == list(STAGES) and row["stages"]["tiles"]["same"] is False
    )
    assert found["questions"][0]["tiles"] == "2x1 and a thumbnail" and found["not_run"] == report.not_run
    write_page(tmp_path / "r.html", report)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "7 instead of 3" in page and "&lt;b&gt;" in page and "引擎对比" in page and "vLLM" in page


def test_an_engine_that_cannot_be_run_is_named(asked, monkeypatch):
    """Also one that isn't installed; it is an error only if the user named it."""
    report = asked("a.png", transformers=EngineError("it is broken"))
    assert report.not_run["transformers"] == "it is broken" and list(report.compared) == ["llama.cpp"]
    assert not report.agrees  # the hf form was given
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    report = asked("a.png", gguf=None, servers=[("http://x/v1", "m")])
    assert report.not_run["llama.cpp"].startswith("llama.cpp isn't installed here: pip install")
    assert report.not_run["m at http://x/v1"] == "can't be reached" and report.asked >= {"m at http://x/v1"}
    report = asked("a.png", only=["transformers"], gguf=None)
    assert report.not_run["llama.cpp"] == "not asked for (--only)"


def test_an_image_that_cannot_be_read_is_left_out(asked):
    report = asked("a.png", "b.png")
    assert len(report.references) == 1 and not report.agrees
    assert [each.id for each in report.unusable] == ["b.png"] and "b.png: " in report.unusable[0].message


@pytest.mark.parametrize(
    "compared, not_run, agrees",
    [
        ({"e": [Comparison("a", {"ids": Finding(True)})]}, {"f": "isn't installed"}, True),
        ({"e": [Comparison("a", {"ids": Finding(True)})]}, {"named": "isn't installed"}, False),
        ({"e": [Comparison("a", {"ids": Finding(None)}), Comparison("b", failure="refused")]}, {}, False),
        ({"e": [Comparison("a", {"answer": Finding(False)})]}, {}, False),
        ({}, {"f": "isn't installed"}, False),
    ],
)
def test_agreement(compared, not_run, agrees):
    report = Report("m", asked={"named"}, compared=compared, not_run=not_run)
    assert report.agrees is agrees
    if len(compared.get("e", ())) == 2:
        assert report.total("e") == "1 of 2 agree; 1 failed" and details(report, "e") == {"b": "failed: refused"}
