"""From the arguments of `tools/check_data.py` to the check, and back to text."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..engine.check.text import missing_base
from ..errors import SettingError, one_line
from ..processes import progress_bar, quiet_imports
from ..settings import VALIDATION, ConfigError, find_config, import_types, parse_words, read_config, value_at

SHOWN_WARNINGS = 5  # of each reason
SHOWN_FILES = 3  # of each finding


def is_config(name: str) -> bool:
    """A Python file, or a bare word that is no file: the name of a config."""
    return name.endswith(".py") or (Path(name).name == name and not Path(name).suffix and not Path(name).exists())


def open_inputs(args: argparse.Namespace) -> list:
    """The dataset of a config or of annotation files, then those that shall hold nothing of it.

    Raises:
        DataError, ConfigError: something can't be opened.
    """
    if is_config(args.inputs[0]):
        return _of_config(args.inputs[0], args.set, args.cfg_options)
    quiet_imports()
    from ..audit.check import PlainFiles
    from ..datasets import MultimodalDataset, PreferenceDataset

    kind = PreferenceDataset if args.pairs else MultimodalDataset
    folders = [each or None for each in args.image_folder] or [None]
    if len(folders) not in (1, len(args.inputs)):
        problem = f"{len(folders)} image folders for {len(args.inputs)} files"
        raise SettingError("image_folder", problem, "give one --image-folder for each file, or one for all")
    data = (args.inputs, folders if len(folders) > 1 else folders[0]), (args.val, args.val_image_folder)
    data = [(files, of_files) for files, of_files in data if files]
    return [kind(args.base, *each) if args.base else PlainFiles(*each, kind.parse) for each in data]


def _of_config(name: str, pairs: list[str], options: list[str]) -> list:
    """The datasets of a config, its benchmarks last."""
    path = find_config(name)
    config = read_config(path, parse_words(pairs, options))
    settings = (config.get("train_dataloader") or {}).get("dataset")
    if settings is None:
        raise ConfigError(f"config {path!r} has no train_dataloader.dataset; name a training config")
    base = settings.get("base")
    if isinstance(base, str) and not Path(base).is_dir():  # before anything large is imported; weights aren't needed
        raise ConfigError(f"model.base={base!r}: no such directory; {missing_base(base, path)}")
    quiet_imports()
    import_types(config)
    from mmengine.registry import DATASETS

    from ..audit.check import open_questions
    from ..engine.hooks.validation import validation_dataset
    from ..evaluation.benchmarks import open_data_sets

    validation = value_at(config, VALIDATION) or {}
    wanted = [settings]
    if validation.get("data_paths"):
        wanted.append(validation_dataset(settings, validation["data_paths"], validation.get("image_folders")))
    try:
        datasets = [DATASETS.build(each) for each in wanted]
    except (TypeError, KeyError) as error:  # an unknown or missing setting, or type
        text = one_line(error, 300)
        raise ConfigError(f"{path}: train_dataloader.dataset: {text}; correct the setting's name") from None
    if files := validation.get("benchmarks"):
        found = open_data_sets(files, images=validation.get("benchmark_images"))
        datasets.append(open_questions({each.name: [question.paths for question in each.questions] for each in found}))
    return datasets


def check_all(datasets: Sequence, args: argparse.Namespace) -> int:
    """Checks training data, then what shall hold nothing of it; writes what was asked for; returns the exit status."""
    from concurrent.futures import BrokenExecutor

    from ..audit.check import write_reject_list
    from ..audit.findings import WORDS, find
    from ..audit.page import as_json, write_page

    try:
        checked = [(dataset, _check(dataset, args.workers, number)) for number, dataset in enumerate(datasets)]
    except BrokenExecutor:
        print("error: a worker was killed, most likely for want of memory; try --workers 1", file=sys.stderr)
        return 2
    (dataset, reports), *validation = checked
    if args.reject_list:
        held = Path(args.reject_list).read_bytes().count(b"\n")
        told = f"the reject list {args.reject_list}{f', which held {held} before' if held else ''}"
        print(f"{plural(write_reject_list(args.reject_list, reports), 'record')} on {told}")
    findings = find(dataset, reports, validation)
    if findings:
        print("\nfindings")
    for each in findings:
        first = "; ".join(f"{name}: {count:,}" for name, count in each.where.most_common(SHOWN_FILES))
        print(f"  {each.count:,} of {each.total:,} {WORDS[each.kind][0]} ({first})")
    if args.json:
        numbers = json.dumps(as_json(dataset, reports, findings, validation), ensure_ascii=False, indent=1)
        Path(args.json).write_text(f"{numbers}\n", encoding="utf-8")
    if args.html:
        cards = write_page(args.html, dataset, reports, findings, validation)
        print(f"page with {plural(cards, 'card')} written to {args.html}")
    return int(any(report.complaints for _, reports in checked for report in reports))


def _check(dataset, num_workers: int | None, number: int) -> list:
    """Checks one dataset and prints what is wrong; returns a report for each file."""
    from ..audit.check import check_dataset, count_samples, stops

    warned: Counter[str] = Counter()
    if number:
        print("\nvalidation data")
    records = sum(len(source.index) for source in dataset.sources)
    with progress_bar(total=records, unit="record", desc="checking") as bar:

        def say(report, complaint) -> None:
            is_bad, reason = stops(complaint), complaint.reason
            warned[reason] += not is_bad
            if is_bad or warned[reason] <= SHOWN_WARNINGS and reason != "rejected":
                end = "" if is_bad or complaint.is_warning else " (left out)"
                bar.write(f"{'' if is_bad else 'warning: '}{report.message(complaint)}{end}", sys.stdout)

        reports = check_dataset(dataset, num_workers=num_workers, say=say, progress=bar.update)
    print(*(line for report in reports for line in _describe(report)), sep="\n")
    total, wrong = sum(map(len, reports)), sum(report.complaints.total() for report in reports)
    good = plural(total - sum(report.num_rejected for report in reports), "record")
    samples = f"an epoch has {count_samples(dataset, reports):,} of {sum(map(len, dataset.picks)):,} samples"
    bad = f"{wrong} of {total} records can't be trained on; {samples} without them"
    print(bad if wrong else f"all {good} can be trained on; {samples}")
    return reports


def _describe(report) -> list[str]:
    """Lines about a file: records, what is wrong with some, images, and with a model tiles and tokens."""
    from ..datasets.plan.budget import SHRUNK, TRUNCATED

    def listed(counts: Counter) -> str:
        return f" ({', '.join(f'{count} {reason}' for reason, count in counts.most_common())})" if counts else ""

    warned = f", {plural(report.warnings.total(), 'warning')}{listed(report.warnings)}" if report.warnings else ""
    wrong = f"{plural(len(report), 'record')}, {report.complaints.total()} wrong{listed(report.complaints)}"
    line = f"{report.source.index.path}: {wrong}{warned}; {plural(len(report.images), 'image')}"
    if report.fates is not None:
        line += f", {plural(report.tiles.sum(), 'tile')}, {plural(report.tokens.sum(), 'token')}"
        line += f", longest {report.tokens.max(initial=0)}"
    more = {"on the reject list": report.num_rejected, "with fewer tiles, to fit max_length": len(report.rows(SHRUNK))}
    more["with the end cut off, to fit max_length"] = len(report.rows(TRUNCATED))
    return [line, *(f"  {plural(count, 'record')} {words}" for words, count in more.items() if count)]


def plural(number: int, noun: str) -> str:
    """Such as "1 record" and "2 records"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show_step(args: argparse.Namespace) -> None:
    """Prints what a step of a run trains on.

    Raises:
        ConfigError, DataError: the config or its data can't be used.
    """
    path = find_config(args.inputs[0])
    config = read_config(path, parse_words(args.set, args.cfg_options))
    quiet_imports()
    import_types(config)

    from ..audit.show_batch import describe_batch
    from ..engine.run.loops import take_step

    rank, ranks = args.rank or 0, args.ranks or 1
    epoch, batches, dataset = take_step(config, args.step, rank, ranks, args.seed)
    print(f"step {args.step:,}, in epoch {epoch + 1}; rank {rank} of {ranks}")
    for number, batch in enumerate(batches, 1):
        print(f"\nmicro-batch {number} of {len(batches)}:", *describe_batch(batch, dataset.tokenizer), sep="\n")
