"""What `tools/check_data.py` does with opened data, and what its user reads of it."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections import Counter

SHOWN_WARNINGS = 5  # of each reason
SHOWN_FILES = 3  # of each finding


def plural(number: int, noun: str) -> str:
    """Such as "1 record" and "2 records"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_histograms(reports) -> None:
    """Tokens, tiles, turns and sizes of all files, each as bars of `#`."""
    import numpy as np

    from ..datasets.audit.check import histogram

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

    from ..datasets.audit.check import count_folders

    with tqdm(total=total, unit="record", desc="reading names", file=sys.stderr) as bar:
        folders = count_folders(dataset, bar.update)
    for folder in folders:
        print(folder, *folder.examples(), sep="\n  ")
    return folders


def check_all(dataset, validation, benchmarks, args: argparse.Namespace, listener: socket.socket | None = None) -> int:
    """Checks training data, then validation data, then what both hold; writes what was asked for.

    Args:
        dataset, validation, benchmarks: of `check_inputs.open_inputs`.
        args: of the command line.
        listener: where the page is served in the end; None doesn't serve it.

    Returns:
        The exit status: 0: training can start; 1: a record is unusable or an image missing; 2: the check couldn't
        be made.
    """
    status, reports, folders = check(dataset, args)
    held_out = []
    for of_validation in validation:
        print("\nvalidation data")
        its_status, its_reports, _ = check(of_validation, argparse.Namespace(**{**vars(args), "reject_list": None}))
        status = max(status, its_status)
        held_out.append((of_validation, its_reports))
    if args.names_only:
        if args.json and status < 2:
            from ..datasets.audit.check import write_json

            write_json(args.json, [], folders)
        return status
    if reports and all(each for _, each in held_out):
        if benchmarks is not None:
            held_out.append((benchmarks, open_questions(benchmarks, args)))
        if inspect(dataset, reports, folders, held_out, args, listener):
            return 0
    return status


def check(dataset, args: argparse.Namespace) -> tuple[int, list, list]:
    """Checks one dataset and prints what is wrong; returns exit status, a report for each file, and the folders."""
    from concurrent.futures import BrokenExecutor

    from tqdm import tqdm

    from ..datasets.audit.check import check_dataset, count_samples, write_reject_list
    from ..datasets.audit.looking import PlainFiles

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

        def resume(done: int) -> None:
            if done:
                earlier = f"{done:,} of {total:,} records were opened by an earlier check: their files are compared"
                bar.write(f"{earlier}, and opened again where one has changed (--fresh: all)", sys.stderr)
                bar.update(done)

        try:
            reports = check_dataset(
                dataset,
                num_workers=args.workers,
                complain=complain,
                warn=warn,
                progress=bar.update,
                resume=resume,
                fresh=args.fresh,
            )
        except BrokenExecutor:
            bar.close()
            told = "a worker was killed, most likely for want of memory; try --workers 1, or a lower max_pixels"
            print(f"error: {told}", file=sys.stderr)
            return 2, [], folders
    counted = not isinstance(dataset, PlainFiles)
    print_histograms(reports)
    print()
    for report in reports:
        print_report(report, counted)
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

    from ..datasets.audit.check import check_dataset

    with tqdm(total=sum(map(len, benchmarks.sources)), unit="question", desc="benchmarks", file=sys.stderr) as bar:

        def complain(text: str) -> None:
            bar.write(f"warning: not compared with the training data: {text}", sys.stdout)

        return check_dataset(benchmarks, num_workers=args.workers, complain=complain, progress=bar.update)


def inspect(dataset, reports, folders, held_out, args: argparse.Namespace, listener: socket.socket | None) -> bool:
    """Prints a line for each finding, writes the page and the numbers; serves the page, and says whether it did."""
    from tqdm import tqdm

    from ..datasets.audit.check import write_json
    from ..datasets.audit.findings import WORDS, find
    from ..datasets.audit.report import as_json, write_report
    from ..datasets.audit.tables import tabulate

    findings = find(dataset, reports, held_out)
    if findings:
        print("\nfindings")
    for each in findings:
        first = "; ".join(f"{name}: {count:,}" for name, count in each.where.most_common(SHOWN_FILES))
        print(f"  {each.count:,} of {each.total:,} {WORDS[each.kind][0]} ({first})")
    if not (args.html or args.json or listener):
        return False
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
    if listener is not None:
        serve_page([(dataset, reports), *held_out], findings, tables, folders, args, listener)
    return listener is not None


def serve_page(everything, findings, tables, folders, args: argparse.Namespace, listener: socket.socket) -> None:
    """Serves the page until Ctrl-C."""
    from ..datasets.audit.browse import Browser
    from ..datasets.audit.report import make_page
    from ..serving.inspector import serve

    browser = Browser(everything, findings)
    page = make_page(everything, findings, tables, folders, {"choices": browser.choices}, args.pack_tokens)
    host, port = listener.getsockname()
    print(f"\npage with {plural(len(browser), 'card')} at http://{host}:{port}/ (Ctrl-C stops)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve(page, browser, listener)
