"""The data sets of a run: benchmark files with their metrics, checked, and named apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.cache import get_cache_dir
from ..datasets.errors import SettingError
from ..inference.batch_answers import Answered, Job, answer_all
from ..inference.questions import Question, Unusable
from .benchmarks import open_benchmark
from .items import Item
from .measured import first_units
from .metric import Metric
from .metrics import find_metric
from .results import items_hash

if TYPE_CHECKING:
    from ..inference.answer_file import AnswerFile

IMAGES = "benchmark_images"  # in the cache folder: images that files hold in themselves


@dataclass
class DataSet:
    """A file's questions with what measures them.

    Attributes:
        name: Apart from that of the run's other data sets.
        path: The file.
        kind: Of the benchmark.
        metric: Of all its questions.
        items: Those that can be asked and measured.
        left_out: What can't, and why; grows while images are opened.
        hash: Of what the file asks and expects, whatever the limit.
    """

    name: str
    path: str
    kind: str
    metric: Metric
    items: Sequence[Item]
    left_out: list[Unusable] = field(default_factory=list)
    hash: str = ""

    def asked(self, item: Item) -> Question:
        """The question under a name that no other data set has."""
        return replace(item.question, id=f"{self.name}/{item.question.id}")


def open_data_sets(
    paths: Sequence[str],
    *,
    metric: str | None = None,
    kind: str | None = None,
    prompt: str | None = None,
    images: str | None = None,
    limit: int | None = None,
) -> list[DataSet]:
    """Reads benchmark files.

    Args:
        paths: The files; their names are those of the data sets.
        metric: Measures all of them; None takes each benchmark's own.
        kind: Of the files; None finds it out.
        prompt: Around each question; None takes each benchmark's own.
        images: Their folder; None takes that of each file.
        limit: About so many questions of each; those that count together stay together.

    Raises:
        ValueError: A file, metric, kind or prompt that can't be used, or two files of the same name.
    """
    found = []
    for path in paths:
        cache = Path(get_cache_dir()) / IMAGES
        read = open_benchmark(path, kind=kind, images=images, cache=cache, metric=metric, prompt=prompt)
        measure = find_metric(read.metric)
        items = read.items if limit is None else first_units(measure, read.items, limit)
        digest = items_hash(read.items)
        found.append(DataSet(read.name, str(path), read.kind, measure, items, list(read.unusable), digest))
    doubled = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if doubled:
        first, second = [each.path for each in found if each.name == doubled[0]][:2]
        raise SettingError("data", f"{first} and {second} have the same name, {doubled[0]!r}", "rename one of them")
    return found


def answer_data_sets(job: Job, data_sets: Sequence[DataSet], file: AnswerFile) -> Iterator[Answered]:
    """Asks what the file has no answer to, in batches across all data sets; yields each question when it is done.

    Answers go to the file, questions that can't be asked to `left_out` of their data set.

    Raises:
        ValueError: The model can't be opened; or the file answers another question under the same id.
        RuntimeError: Out of memory, or a process was killed.
    """
    homes = {each.asked(item).id: (each, item) for each in data_sets for item in each.items}
    todo = unanswered(data_sets, file)
    for question, answer in answer_all(job, todo) if todo else ():
        if isinstance(answer, Unusable):
            home, item = homes[question.id]
            home.left_out.append(Unusable(item.question.id, answer.message))
        else:
            file.add(question, answer)
        yield question, answer


def unanswered(data_sets: Sequence[DataSet], file: AnswerFile) -> list[Question]:
    """The questions that the file has no answer to."""
    return [asked for each in data_sets for item in each.items if not file.has(asked := each.asked(item))]


def answers_to(data_set: DataSet, file: AnswerFile) -> Mapping[str, str]:
    """The answers in the file, by the ids of the data set."""
    pairs = ((item.question.id, file.answers.get(data_set.asked(item).id)) for item in data_set.items)
    return {name: row["answer"] for name, row in pairs if row is not None}
