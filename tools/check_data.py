"""Opens every record and every image of training data, before the first GPU hour.

    python tools/check_data.py finetune_lora [--set data_paths=a.jsonl image_folders=images]
    python tools/check_data.py a.jsonl b.json --image-folder A --image-folder B [--base models/base]
    python tools/check_data.py a.jsonl --image-folder A --val v.jsonl --val-image-folder A --html page.html
    python tools/check_data.py a.jsonl --image-folder A --names-only
    python tools/check_data.py pairs.jsonl --pairs --image-folder A [--base models/base]
    python tools/check_data.py meta.json [--base models/base]        a meta file of the official code

First the names in records are compared with the files of the image folders: how many are missing, and how many files no
record names. --names-only stops there (seconds for half a million images). A config's val_data_paths and panel are
checked after its training data; --reject-list is about the training data alone.

Then it says what else it found: copies within and between files, training images in validation data, refusals,
outliers, images enlarged or squeezed (docs/data.md). These don't change the exit status. --html shows all of it, with
cards of records to search, filter and sort.

Each complaint begins with `file:line:`. Warnings are about records that train, but perhaps not what their author meant;
of each kind the first few are shown. The exit status is 0 when training can start, 1 when a record is unusable or an
image missing, 2 when nothing could be checked.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from pathlib import Path

SHOWN_WARNINGS = 5  # of each reason
SHOWN_FILES = 3  # of each finding
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.cli.arguments import add_config_options, parse_options  # noqa: E402
from xtuner_plugins.cli.terminal import quiet_imports  # noqa: E402
from xtuner_plugins.config_file import (  # noqa: E402
    ConfigError,
    find_config,
    import_types,
    read_config,
    validation_settings,
)
from xtuner_plugins.leaf import Leaf  # noqa: E402


def at_least(low: int):
    """An argparse type: whole numbers from `low` on."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is less than {low}")
        return number

    return whole_number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="CONFIG | DATA",
        help="a training config, by its name or path (its train_dataloader.dataset is checked), or annotation files",
    )
    parser.add_argument(
        "--image-folder",
        action="append",
        default=[],
        metavar="DIR",
        help="with annotation files: one for each of them, or one for all; '' for none",
    )
    parser.add_argument(
        "--val",
        action="append",
        default=[],
        metavar="DATA",
        help="with annotation files: validation data, checked too, that shall hold nothing of the training data",
    )
    parser.add_argument("--val-image-folder", metavar="DIR", help="of all --val files")
    parser.add_argument("--base", help="with annotation files: a model directory, to count tokens and tiles")
    parser.add_argument(
        "--pairs", action="store_true", help="the annotation files hold preference pairs (docs/preference.md)"
    )
    add_config_options(parser)
    parser.add_argument("--workers", type=at_least(0), help="processes (default: one per core; 0: none)")
    parser.add_argument(
        "--reject-list",
        metavar="FILE",
        help="write the unusable records there; training leaves them out with reject_list=FILE",
    )
    parser.add_argument(
        "--names-only",
        action="store_true",
        help="only compare names with the files of the image folders; open no image",
    )
    parser.add_argument("--json", metavar="FILE", help="write counts, findings, and all missing and superfluous names")
    parser.add_argument("--html", metavar="FILE", help="write a page with figures, findings and sample cards")
    parser.add_argument(
        "--cards",
        type=at_least(0),
        default=200,
        metavar="N",
        help="random samples on the page, besides records with complaints and examples of findings (default: 200; "
        "0: no cards); with more than 400 cards the images go to a folder beside the page",
    )
    parser.add_argument("--pack-tokens", type=at_least(1), default=8192, help="budget of the packs drawn on the page")
    args = parser.parse_args()
    if args.names_only and (args.html or args.reject_list):
        parser.error("--names-only opens no record, so it goes with neither --html nor --reject-list")
    of_config = [name for name in ("image_folder", "base", "pairs", "val", "val_image_folder") if getattr(args, name)]
    if any(map(is_config, args.inputs)):
        if len(args.inputs) > 1:
            parser.error("a config and other inputs together; give one config, or annotation files")
        if of_config:
            parser.error(f"--{of_config[0].replace('_', '-')} goes with annotation files; a config names its own")
    else:
        for option in ("set", "cfg_options"):
            if getattr(args, option):
                parser.error(f"--{option.replace('_', '-')} goes with a config")
    return args


def is_config(name: str) -> bool:
    """A Python file, or a bare word that is no file: the name of a config."""
    return name.endswith(".py") or (Path(name).name == name and not Path(name).suffix and not Path(name).exists())


def open_inputs(args: argparse.Namespace) -> tuple:
    """The dataset of a config or of annotation files, that of validation if there is one, and benchmarks or None."""
    if is_config(args.inputs[0]):
        return build_datasets(args.inputs[0], args.set, args.cfg_options)
    quiet_imports()
    from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset, SettingError
    from xtuner_plugins.datasets.audit.looking import PlainFiles
    from xtuner_plugins.datasets.meta_file import expand_metas

    folders = [folder or None for folder in args.image_folder] or [None]
    if len(folders) == 1:
        folders *= len(args.inputs)
    if len(folders) != len(args.inputs):
        raise SettingError(
            "image_folder",
            f"{len(folders)} image folders for {len(args.inputs)} files",
            "give one --image-folder for each file, or one for all",
        )
    kind = PreferenceDataset if args.pairs else MultimodalDataset
    opened = []
    for files, of_files in ((args.inputs, folders), (args.val, [args.val_image_folder] * len(args.val))):
        if files:
            if args.base:
                opened.append(kind(args.base, files, of_files))
            else:
                files, of_files, *_ = expand_metas(files, of_files)
                opened.append(PlainFiles(files, of_files, parse=kind.parse))
    return opened, None


def build_datasets(name: str, pairs: list[str], options: list[str]) -> tuple:
    """As `open_inputs`, of a config; its panel is opened, too."""
    path = find_config(name)
    text = Leaf.read(path).changed(pairs).standalone() if pairs else None
    config = read_config(path, parse_options(options), text)
    settings = (config.get("train_dataloader") or {}).get("dataset")
    if settings is None:
        raise ConfigError(f"config {path!r} has no train_dataloader.dataset; name a training config")
    base = settings.get("base")
    if isinstance(base, str) and not Path(base).is_dir():  # known before anything large is imported
        raise ConfigError(
            f"model directory {base!r} isn't there; build it with tools/build_base_model.py or correct 'base'"
        )
    quiet_imports()
    import_types(config)
    from mmengine.registry import DATASETS

    from xtuner_plugins.datasets.images.media import open_image
    from xtuner_plugins.engine.panel import read_panel
    from xtuner_plugins.engine.validation_loss import validation_dataset

    validation = validation_settings(config)
    for record in read_panel(validation.get("panel")):
        open_image(record.image)
    wanted = [settings]
    if validation.get("data_paths"):
        wanted.append(validation_dataset(settings, validation["data_paths"], validation.get("image_folders")))
    try:
        return [DATASETS.build(each) for each in wanted], open_benchmarks(validation)
    except (TypeError, KeyError) as error:  # an unknown or missing setting, or type
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: train_dataloader.dataset: {text}; correct the setting's name") from None


def open_benchmarks(validation):
    """The questions of `val_benchmarks`, to be compared with the training data; None without."""
    files = validation.get("benchmarks") or ()
    if not files:
        return None
    from xtuner_plugins.datasets.audit.looking import AskedFile, AskedFiles
    from xtuner_plugins.evaluation.data_sets import open_data_sets

    found = open_data_sets([files] if isinstance(files, str) else files, images=validation.get("benchmark_images"))
    questions = [[(item.question.id, item.question.text, item.question.paths) for item in each.items] for each in found]
    return AskedFiles([AskedFile(each.name, each.path, asked) for each, asked in zip(found, questions, strict=True)])


def prepare_output(path: str) -> None:
    """Whether a result can be written is better known before an hour of checking.

    Raises:
        SettingError: it can't.
    """
    from xtuner_plugins.datasets.errors import SettingError

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a"):
            pass
    except OSError as error:
        raise SettingError("output", f"{path!r} can't be written ({error.strerror})", "name another file") from None


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_histograms(reports) -> None:
    import numpy as np

    from xtuner_plugins.datasets.audit.check import histogram

    for name in ("tokens", "tiles", "turns", "width", "height"):
        bins = histogram(np.concatenate([report.column(name) for report in reports]))
        if not bins or bins[-1][0] == "0":
            continue
        most = max(count for _, count in bins)
        print(f"\n{name}")
        for label, count in bins:
            print(f"  {label:>13} {'#' * round(40 * count / most):<40} {count}")


def print_report(report, counted: bool) -> None:
    """One line for a file: records, what is wrong with some, images, and with a model tiles and tokens."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.complaints.most_common())
    warned = ", ".join(f"{count} {reason}" for reason, count in report.warnings.most_common())
    warnings = f", {plural(report.warnings.total(), 'warning')} ({warned})" if warned else ""
    tokens = report.column("tokens")
    sums = (
        f", {plural(report.column('tiles').sum(), 'tile')}, {plural(tokens.sum(), 'token')} of which "
        f"{report.column('supervised').sum()} supervised, longest {tokens.max(initial=0)}"
    )
    print(
        f"{report.path}: {plural(report.num_records, 'record')}, {report.num_wrong} wrong"
        f"{f' ({reasons})' if reasons else ''}{warnings}; {plural(report.num_images, 'image')}"
        f"{sums if counted else ''}"
    )
    if report.num_rejected:
        print(f"  {plural(report.num_rejected, 'record')} on the reject list")
    if report.changes["shrink_tiles"]:
        print(f"  {plural(report.changes['shrink_tiles'], 'record')} with fewer tiles, to fit max_length")
    if report.changes["truncate_text"]:
        cut = plural(report.changes["truncate_text"], "record")
        print(f"  {cut} with the end cut off, to fit max_length; the first at {report.path}:{report.first_cut}")


def compare_names(dataset, total: int) -> list:
    """Prints a line for each image folder, and the first names of what is missing or superfluous."""
    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.check import count_folders

    with tqdm(total=total, unit="record", desc="reading names", file=sys.stderr) as bar:
        folders = count_folders(dataset, bar.update)
    for folder in folders:
        print(folder, *folder.examples(), sep="\n  ")
    return folders


def main() -> int:
    args = parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from xtuner_plugins.datasets.errors import DataError

    try:
        (dataset, *validation), benchmarks = open_inputs(args)
        for path in filter(None, (args.reject_list, args.html, args.json)):
            prepare_output(path)
    except ValueError as error:
        if getattr(error, "place", "") or getattr(error, "reason", "") == "files":  # annotation files that are unusable
            print(error)
            return 1
        print(f"error: {error}", file=sys.stderr)
        return 2
    held_out = []
    try:
        status, reports, folders = check(dataset, args)
        for of_validation in validation:
            print("\nvalidation data")
            its_status, its_reports, _ = check(of_validation, argparse.Namespace(**{**vars(args), "reject_list": None}))
            status = max(status, its_status)
            held_out.append((of_validation, its_reports))
    except DataError as error:  # about no record: a store that doesn't answer
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.names_only:
        if args.json and status < 2:
            from xtuner_plugins.datasets.audit.check import write_json

            write_json(args.json, [], folders)
        return status
    if reports and all(each for _, each in held_out):
        if benchmarks is not None:
            held_out.append((benchmarks, open_questions(benchmarks, args)))
        inspect(dataset, reports, folders, held_out, args)
    return status


def check(dataset, args: argparse.Namespace) -> tuple[int, list, list]:
    """Checks one dataset and prints what is wrong; returns exit status, a report for each file, and the folders."""
    from concurrent.futures import BrokenExecutor

    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.check import check_dataset, count_samples, write_reject_list
    from xtuner_plugins.datasets.audit.looking import PlainFiles
    from xtuner_plugins.datasets.records.kinds import describe

    total = sum(len(source.index) for source in dataset.sources)
    complaints: list[str] = []
    warned: Counter[str] = Counter()
    folders = compare_names(dataset, total)
    if args.names_only and not folders:
        print("error: no image folder is given, so there is nothing to compare names with", file=sys.stderr)
        return 2, [], []
    if args.names_only:
        return int(any(folder.missing for folder in folders)), [], folders

    with tqdm(total=total, unit="record", desc="checking", file=sys.stderr) as bar:

        def complain(text: str) -> None:
            complaints.append(text)
            bar.write(text, sys.stdout)

        def warn(reason: str, text: str) -> None:
            warned[reason] += 1
            if warned[reason] <= SHOWN_WARNINGS:
                bar.write(f"warning: {text}", sys.stdout)

        try:
            reports = check_dataset(
                dataset, num_workers=args.workers, complain=complain, warn=warn, progress=bar.update
            )
        except BrokenExecutor:
            bar.close()
            print("a worker was killed, most likely for want of memory; try --workers 1, or a lower max_pixels")
            return 1, [], folders
    counted = not isinstance(dataset, PlainFiles)
    print_histograms(reports)
    print()
    for report, source in zip(reports, dataset.sources, strict=True):
        print_report(report, counted)
        print(f"  kind: {describe(source.index) or 'unknown'}")
    if args.reject_list:
        print(f"{plural(write_reject_list(args.reject_list, reports), 'record')} on the reject list {args.reject_list}")
    samples = f"; an epoch has {count_samples(dataset, reports):,} of {len(dataset):,} samples" if counted else ""
    if complaints:
        print(f"{len(complaints)} of {total} records can't be trained on{f'{samples} without them' if samples else ''}")
        return 1, reports, folders
    total -= sum(report.num_rejected for report in reports)
    print(f"all {plural(total, 'record')} can be trained on{samples}")
    return 0, reports, folders


def open_questions(benchmarks, args: argparse.Namespace) -> list:
    """Opens the images of benchmarks; says which can't be opened, since they can't be compared."""
    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.check import check_dataset

    with tqdm(total=sum(map(len, benchmarks.sources)), unit="question", desc="benchmarks", file=sys.stderr) as bar:

        def complain(text: str) -> None:
            bar.write(f"warning: not compared with the training data: {text}", sys.stdout)

        return check_dataset(benchmarks, num_workers=args.workers, complain=complain, progress=bar.update)


def inspect(dataset, reports, folders, held_out, args: argparse.Namespace) -> None:
    """Prints a line for each finding, and writes the page and the numbers."""
    from tqdm import tqdm

    from xtuner_plugins.datasets.audit.check import write_json
    from xtuner_plugins.datasets.audit.findings import WORDS, find
    from xtuner_plugins.datasets.audit.report import as_json, write_report
    from xtuner_plugins.datasets.audit.tables import tabulate

    findings = find(dataset, reports, held_out)
    if findings:
        print("\nfindings")
    for each in findings:
        first = "; ".join(f"{name}: {count:,}" for name, count in each.where.most_common(SHOWN_FILES))
        print(f"  {each.count:,} of {each.total:,} {WORDS[each.kind][0]} ({first})")
    if not (args.html or args.json):
        return
    tables = tabulate(dataset, reports, num_workers=args.workers)
    if args.json:
        write_json(args.json, reports, folders, as_json(dataset, reports, findings, tables, held_out))
    if args.html:
        with tqdm(unit="card", desc="making cards", file=sys.stderr) as bar:
            written = write_report(
                args.html,
                dataset,
                reports,
                findings,
                tables,
                folders,
                validation=held_out,
                num_cards=args.cards,
                max_tokens=args.pack_tokens,
                progress=bar.update,
            )
        print(f"page with {plural(written.num_cards, 'card')} written to {args.html}{written.describe_folder()}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)  # as a shell says of what was interrupted
