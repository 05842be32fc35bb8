"""Runs the engines at hand on the same questions, one after the other, and tells where they part from ours."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints.errors import CheckpointError
from ..checkpoints.formats import hf, open_config
from ..html_page import render
from ..processes import num_cores
from .compare_engines import STAGES, TOLERANCE, Comparison, Ours, Reference, ask_all, described
from .engines import Engine, LlamaCppEngine, ServerEngine, TransformersEngine
from .llama_cpp import import_package
from .opening import open_session
from .questions import Question, Unusable
from .session import resolve_device, resolve_dtype

INSTALLED = (TransformersEngine.name, LlamaCppEngine.name)  # as Python packages; others are reached as servers
SERVERS = ("vLLM", "SGLang", "lmdeploy")
NO_SERVER = "start its server and give --server URL --model NAME"
NOT_WANTED = "not asked for (--only)"
ADVICE = {
    ("llama.cpp", "tiles"): (
        "llama.cpp cuts images by a rule of its own: more tiles, at another scale than in training. Resize images to "
        "their grid before sending them (docs/using.md, llama.cpp); --resize-to-grid shows what that changes"
    ),
    ("transformers", "tiles"): (
        "transformers' processor gives each image of a question all tiles, in training they shared them: ask about one "
        "image, or lower max_patches in preprocessor_config.json"
    ),
    ("transformers", "ids"): (
        "transformers' chat template puts a line break after each image; write images before the text, as in training"
    ),
    ("server", "tiles"): (
        "the server cuts images by a rule or settings of its own; --resize-to-grid shows whether resizing images to "
        "their grid before sending them avoids it"
    ),
}


@dataclass(frozen=True)
class Settings:
    """What is run, and how.

    Attributes:
        only: Names of engines; empty for all.
        hf: The hf form of the export; None makes one in a temporary folder.
        gguf: Language model and mmproj; None makes them in a temporary folder.
        servers: (URL, model) of each.
        resize: Send images to llama.cpp and servers at the size of their official grid.
        max_new_tokens: Length limit of the answers.
        tolerance: Largest difference of log probabilities that is none.
        device: For ours and transformers; llama.cpp runs on the CPU.
        dtype: Likewise.
    """

    only: Sequence[str] = ()
    hf: Path | None = None
    gguf: tuple[Path, Path] | None = None
    servers: Sequence[tuple[str, str]] = ()
    resize: bool = False
    max_new_tokens: int = 16
    tolerance: float = TOLERANCE
    device: str = "auto"
    dtype: str = "auto"

    @property
    def named(self) -> set[str]:
        """Packages that the user asked for."""
        given = {TransformersEngine.name: self.hf, LlamaCppEngine.name: self.gguf}
        return {*self.only, *(name for name, files in given.items() if files is not None)}


@dataclass
class Report:
    """What was compared.

    Attributes:
        model: The export.
        references: What our code makes of each question.
        asked: Engines that the user named.
        unusable: Questions that can't be asked.
        compared: By engine, one entry per question.
        not_run: Engines that weren't, and why.
        advice: By engine, how to avoid what was found.
    """

    model: str
    asked: set[str] = field(default_factory=set)
    references: list[Reference] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    compared: dict[str, list[Comparison]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    advice: dict[str, list[str]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Every question was asked, every engine that the user named ran, and none that ran parts from ours."""
        whole = bool(self.compared) and not self.unusable and not self.asked & self.not_run.keys()
        return whole and all(each.agrees for row in self.compared.values() for each in row)

    def total(self, engine: str) -> str:
        """An engine's line: how many agree, and at which stage the others part."""
        row = self.compared[engine]
        counts = Counter("failed" if each.failure else each.parts_at for each in row)
        parts = [f"{counts[stage]} part at {stage}" for stage in STAGES if counts[stage]]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        return "; ".join([f"{counts[None]} of {len(row)} agree", *parts])

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "model": self.model,
            "questions": [_reference_json(each) for each in self.references],
            "left_out": [{"id": each.id, "message": each.message} for each in self.unusable],
            "engines": {
                name: {
                    "total": self.total(name),
                    "advice": self.advice.get(name, []),
                    "questions": [_comparison_json(each) for each in row],
                }
                for name, row in self.compared.items()
            },
            "not_run": self.not_run,
        }


def run_engines(
    model: str,
    questions: Sequence[Question],
    settings: Settings,
    *,
    begin: Callable[[str, int], Any] = lambda name, total: None,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Asks ours and every other engine the same questions.

    Args:
        model: An export or a base, in the official or the hf format.
        questions: To ask.
        settings: What is run, and how.
        begin: Called with each engine's name and its number of questions.
        advance: Called after each question.

    Raises:
        ValueError: The model can't be opened.
    """
    servers = {f"{name} at {url}": (url, name) for url, name in settings.servers}
    report = Report(model, settings.named | servers.keys())
    device = resolve_device(settings.device)
    ours = Ours(open_session(model, device=settings.device, dtype=settings.dtype), settings.max_new_tokens)
    begin("ours", len(questions))
    for question in questions:
        try:
            report.references.append(ours.read(question))
        except ValueError as error:
            report.unusable.append(Unusable(question.id, str(error)))
        advance()
    ours.close()
    openers: dict[str, Callable[[], AbstractContextManager[Engine]]] = {
        "transformers": lambda: _transformers(model, settings, device, ours.num_rows),
        "llama.cpp": lambda: _llama_cpp(model, settings),
        **{name: partial(_server, *server) for name, server in servers.items()},
    }
    for name, opener in openers.items():
        if settings.only and name in INSTALLED and name not in settings.only:
            report.not_run[name] = NOT_WANTED
            continue
        try:
            begin(name, len(report.references))
            report.compared[name] = _compared(opener, ours, report.references, settings, advance)
        except (ValueError, OSError) as error:
            report.not_run[name] = str(error)
            continue
        kind = name if name in INSTALLED else "server"
        stages = {each.parts_at for each in report.compared[name]}
        report.advice[name] = [ADVICE[kind, stage] for stage in STAGES if stage in stages and (kind, stage) in ADVICE]
    if not settings.servers:
        report.not_run |= dict.fromkeys(SERVERS, NO_SERVER)
    return report


def _compared(opener, ours: Ours, references, settings: Settings, advance) -> list[Comparison]:
    """One engine on all questions; it is gone from memory afterwards."""
    found = []
    with opener() as engine:
        # transformers cuts by the official rule, so its images stay as they are.
        resize = settings.resize and not isinstance(engine, TransformersEngine)
        limits = {"max_new_tokens": settings.max_new_tokens, "tolerance": settings.tolerance}
        for comparison in ask_all(engine, ours, references, resize=resize, **limits):
            found.append(comparison)
            advance()
    return found


@contextmanager
def _transformers(model: str, settings: Settings, device, num_rows: int) -> Iterator[Engine]:
    dtype = resolve_dtype(settings.dtype, device)
    with tempfile.TemporaryDirectory(prefix="compare-engines-") as folder:
        directory = settings.hf
        if directory is None and open_config(model)[0] is hf:
            directory = Path(model)
        if directory is None:
            from ..checkpoints.export import convert

            directory = Path(folder, "hf")
            convert(model, directory, format=hf.NAME)
        yield TransformersEngine(directory, device, dtype, num_rows)


@contextmanager
def _llama_cpp(model: str, settings: Settings) -> Iterator[Engine]:
    import_package()
    with tempfile.TemporaryDirectory(prefix="compare-engines-") as folder:
        files = settings.gguf
        if files is None:
            try:
                from ..checkpoints.llama_cpp.convert import convert
            except ModuleNotFoundError as error:
                if error.name != "gguf":
                    raise
                raise CheckpointError("the package gguf is missing: pip install -r requirements.txt") from None
            done = convert(model, folder)
            files = (done.model, done.mmproj)
        yield LlamaCppEngine(*files, threads=num_cores())


@contextmanager
def _server(url: str, model: str) -> Iterator[Engine]:
    yield ServerEngine(url, model)


def _reference_json(each: Reference) -> dict[str, Any]:
    return {
        "id": each.question.id,
        "question": each.question.text,
        "images": list(each.question.images),
        "tiles": described(each.grids),
        "num_tiles": each.num_tiles,
        "num_tokens": len(each.ids),
        "answer": each.answer,
    }


def _comparison_json(each: Comparison) -> dict[str, Any]:
    findings = {stage: {"same": found.same, "found": found.text} for stage, found in each.findings.items()}
    return {
        "id": each.question,
        "parts_at": each.parts_at,
        "failure": each.failure,
        "answer": each.answer,
        "stages": findings,
    }


def write_json(path: str | Path, report: Report) -> None:
    """Writes the report as one JSON object."""
    text = json.dumps(report.as_json(), ensure_ascii=False, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def write_page(path: str | Path, report: Report) -> None:
    """Writes the report as a page."""
    text = render(Path(__file__).parent, "engines.html.jinja", report=report, stages=STAGES, described=described)
    Path(path).write_text(text, encoding="utf-8")


def details(report: Report, engine: str) -> Mapping[str, str]:
    """What an engine does otherwise, by question: the first stage that differs, in words."""
    found = {}
    for each in report.compared[engine]:
        if each.failure:
            found[each.question] = f"failed: {each.failure}"
        elif each.parts_at:
            found[each.question] = f"{each.parts_at}: {each.findings[each.parts_at].text}"
    return found
