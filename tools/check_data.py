"""Opens every record and every picture of training data, before the first GPU hour.

    python tools/check_data.py configs/finetune_lora.py
    python tools/check_data.py a.jsonl b.json --image-folder A --image-folder B [--base models/base]

Each complaint begins with `file:line:`. The exit status is 1 when anything is wrong, 0 when training can start.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="CONFIG | DATA",
        help="a training config (its train_dataloader.dataset is checked), or annotation files",
    )
    parser.add_argument(
        "--image-folder",
        action="append",
        default=[],
        metavar="DIR",
        help="with annotation files: one for each of them, or one for all; '' for none",
    )
    parser.add_argument("--base", help="with annotation files: a model directory, to count tokens and tiles")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the config, as xtuner train does",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core; 0: none)")
    parser.add_argument(
        "--reject-list",
        metavar="FILE",
        help="write the unusable records there; training leaves them out with reject_list=FILE",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with figures, packs and sample cards")
    parser.add_argument("--cards", type=int, default=12, help="samples shown on the page")
    parser.add_argument("--pack-tokens", type=int, default=8192, help="budget of the packs drawn on the page")
    return parser.parse_args()


def open_inputs(args: argparse.Namespace):
    """The dataset of a config, or of annotation files."""
    from xtuner_plugins.datasets import MultimodalDataset, SettingError
    from xtuner_plugins.datasets.check import PlainFiles

    configs = [path for path in args.inputs if path.endswith(".py")]
    if configs and len(args.inputs) > 1:
        raise SettingError("inputs", "a config and other inputs together", "give one config, or annotation files")
    if configs:
        return build_dataset(configs[0], args.cfg_options)
    folders = [folder or None for folder in args.image_folder] or [None]
    if len(folders) == 1:
        folders *= len(args.inputs)
    if len(folders) != len(args.inputs):
        raise SettingError(
            "image_folder",
            f"{len(folders)} image folders for {len(args.inputs)} files",
            "give one --image-folder for each file, or one for all",
        )
    if args.base:
        return MultimodalDataset(args.base, args.inputs, folders)
    return PlainFiles(args.inputs, folders)


def build_dataset(path: str, options: list[str]):
    """The training dataset of a config."""
    from mmengine.config import Config, DictAction
    from mmengine.registry import DATASETS

    from xtuner_plugins.datasets.errors import SettingError

    if not os.path.isfile(path):
        raise SettingError("config", f"config {path!r} isn't there", "name a config file")
    config = Config.fromfile(path)
    if options:
        parsed = argparse.ArgumentParser()
        parsed.add_argument("--options", nargs="+", action=DictAction)
        config.merge_from_dict(parsed.parse_args(["--options", *options]).options)
    settings = (config.get("train_dataloader") or {}).get("dataset")
    if settings is None:
        raise SettingError("config", f"config {path!r} has no train_dataloader.dataset", "name a training config")
    try:
        return DATASETS.build(settings)
    except TypeError as error:  # an unknown or missing setting
        raise SettingError(
            "config", f"{path}: train_dataloader.dataset: {error}", "correct the setting's name"
        ) from None


def print_histograms(reports) -> None:
    import numpy as np

    from xtuner_plugins.datasets.check import histogram

    for name in ("tokens", "tiles", "turns", "width", "height"):
        bins = histogram(np.concatenate([report.column(name) for report in reports]))
        if not bins or bins[-1][0] == "0":
            continue
        most = max(count for _, count in bins)
        print(f"\n{name}")
        for label, count in bins:
            print(f"  {label:>13} {'#' * round(40 * count / most):<40} {count}")


def main() -> int:
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from xtuner_plugins.terminal import quiet_imports

    quiet_imports()
    from tqdm import tqdm

    from xtuner_plugins.datasets.check import PlainFiles, check_dataset, write_reject_list
    from xtuner_plugins.datasets.errors import DataError
    from xtuner_plugins.datasets.report import write_report

    try:
        dataset = open_inputs(args)
    except DataError as error:
        print(error)
        return 1
    total = sum(len(source.index) for source in dataset.sources)
    complaints: list[str] = []

    with tqdm(total=total, unit="record", desc="checking", file=sys.stderr) as bar:

        def complain(text: str) -> None:
            complaints.append(text)
            bar.write(text, sys.stdout)

        reports = check_dataset(dataset, num_workers=args.workers, complain=complain, progress=bar.update)
    print_histograms(reports)
    print()
    for report in reports:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.complaints.most_common())
        tokens = report.column("tokens")
        counted = (
            f", {report.column('tiles').sum()} tiles, {tokens.sum()} tokens of which "
            f"{report.column('supervised').sum()} supervised, longest {tokens.max(initial=0)}"
            if not isinstance(dataset, PlainFiles)
            else ""
        )
        print(
            f"{report.path}: {report.num_records} records, {report.num_wrong} wrong"
            f"{f' ({reasons})' if reasons else ''}; {report.num_pictures} pictures{counted}"
        )
    if args.reject_list:
        print(f"{write_reject_list(args.reject_list, reports)} records on the reject list {args.reject_list}")
    if args.html and not isinstance(dataset, PlainFiles):
        write_report(args.html, dataset, reports, complaints, num_cards=args.cards, max_tokens=args.pack_tokens)
        print(f"page written to {args.html}")
    elif args.html:
        print("--html needs a config or --base: tiles and tokens are shown as a model sees them")
        return 1
    if complaints:
        print(f"{len(complaints)} of {total} records can't be trained on")
        return 1
    samples = "" if isinstance(dataset, PlainFiles) else f" ({len(dataset)} samples an epoch)"
    print(f"all {total} records can be trained on{samples}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
