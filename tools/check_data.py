"""Opens every record and every picture of a config's training data, before the first GPU hour.

    python tools/check_data.py configs/finetune_lora.py

Each complaint begins with `file:line:`. The exit status is 1 when anything is wrong, 0 when training can start.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a training config; its train_dataloader.dataset is checked")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE",
                        help="override settings of the config, as xtuner train does")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core; 0: none)")
    return parser.parse_args()


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
        raise SettingError("config", f"{path}: train_dataloader.dataset: {error}",
                           "correct the setting's name") from None


def main() -> int:
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tqdm import tqdm

    from xtuner_plugins.datasets.check import check_dataset
    from xtuner_plugins.datasets.errors import DataError

    try:
        dataset = build_dataset(args.config, args.cfg_options)
    except DataError as error:
        print(error)
        return 1
    total = sum(len(source.index) for source in dataset.sources)
    with tqdm(total=total, unit="record", desc="checking", file=sys.stderr) as bar:
        reports = check_dataset(dataset, num_workers=args.workers, complain=lambda text: bar.write(text, sys.stdout),
                                progress=bar.update)
    for report in reports:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.complaints.most_common())
        print(f"{report.path}: {report.num_records} records, {report.num_wrong} wrong"
              f"{f' ({reasons})' if reasons else ''}; {report.num_pictures} pictures, {report.num_tiles} tiles, "
              f"{report.num_tokens} tokens of which {report.num_supervised} supervised, longest {report.longest}")
    wrong = sum(report.num_wrong for report in reports)
    print(f"{wrong} of {total} records can't be trained on" if wrong else
          f"all {total} records can be trained on ({len(dataset)} samples an epoch)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
