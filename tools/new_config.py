"""Writes a config of one's own that takes in one of configs/ and says what differs, anywhere on disk.

python tools/new_config.py finetune_lora my_run.py --base models/base --data a.jsonl b.json --images images
python tools/new_config.py finetune_lora my_run.py --base models/base --data a.jsonl --images images --set lr=5e-5
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.cli.from_xtuner import check_out, derive, launch_line  # noqa: E402
from xtuner_plugins.data_names import absolute_path, names_data, names_images  # noqa: E402
from xtuner_plugins.settings import (  # noqa: E402
    SETTINGS,
    ConfigError,
    add_config_options,  # noqa: E402
    find_config,
    labels_of,
    leaves,
    parse_words,
    read_config,
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a config of configs/ by its name")
    parser.add_argument("out", help="the Python file to write")
    parser.add_argument("--base", required=True, metavar="DIR", help="the model directory to train from")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="annotation files (json or jsonl)")
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="DIR", help="image folders: one for each file, or one for all"
    )
    parser.add_argument("--val", nargs="+", default=[], metavar="FILE", help="annotation files to validate on")
    parser.add_argument(
        "--val-images", nargs="+", default=[], metavar="DIR", help="their image folders (default: the one of --images)"
    )
    add_config_options(parser, cfg_options=False)
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    args = parser.parse_args(argv)
    if len(args.images) not in (1, len(args.data)):
        parser.error(f"{len(args.images)} image folders for {len(args.data)} files; give one for each, or one for all")
    if args.val_images and not args.val:
        parser.error("--val-images goes with --val")
    if args.val and not args.val_images:
        if len(args.images) > 1:
            parser.error("--val with several --images; name the folders of its images with --val-images")
        args.val_images = args.images
    if args.val and len(args.val_images) not in (1, len(args.val)):
        parser.error(f"{len(args.val_images)} image folders for {len(args.val)} files of --val; give one for each")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        launch = write_config(args)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}; start it with\n{launch}")
    return 0


def write_config(args: argparse.Namespace) -> str:
    """Writes OUT; returns the command that starts it."""
    out = Path(args.out)
    check_out(out, args.force)
    path = Path(find_config(args.name))
    parent = path.stem
    if parent not in leaves() or not path.samefile(leaves()[parent]):
        raise ConfigError(f"{path} is no config of configs/; take it in as docs/training.md shows")
    for missing in [
        given
        for given in [args.base, *args.data, *args.images, *args.val]
        if not (names_data(given) or names_images(given))
    ]:
        print(f"warning: {missing} does not exist yet", file=sys.stderr)
    # Absolute, so that the run may be started in any directory.
    base, data, images = os.path.abspath(args.base), absolute(args.data), absolute(args.images)
    given = {"base": base, "data_paths": data, "image_folders": images * (len(data) // len(images))}
    if args.val:
        folders = absolute(args.val_images)
        given |= {"val_data_paths": absolute(args.val), "val_image_folders": folders * (len(args.val) // len(folders))}
    changes = {SETTINGS[name].key: value for name, value in given.items()} | parse_words(args.set)
    read_config(parent, changes)  # each key is there
    launch, of_parent = launch_line(parent, out), labels_of(leaves()[parent])
    labels = {
        "title": f"As {parent}, with a base and data of one's own.",
        "trains": of_parent["trains"],
        "frozen": of_parent["frozen"],
        "starts from": base,
        "data": f"{', '.join(data)}; images in {', '.join(images)}",
        "launch": launch,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(derive(parent, labels, changes), encoding="utf-8")
    return launch


def absolute(paths: list[str]) -> list[str]:
    return [absolute_path(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
