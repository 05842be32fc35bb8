"""Arguments that every tool which takes a config has in common."""

from __future__ import annotations

import argparse


def add_config_options(parser: argparse.ArgumentParser, cfg_options: bool = True) -> None:
    """Adds ``--set`` and ``--cfg-options``; both may be given several times (see `settings.parse_words`)."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="other values for settings, e.g. lr=5e-5 data_paths=a.jsonl,b.jsonl; print_config.py lists them",
    )
    if cfg_options:
        parser.add_argument(
            "--cfg-options",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="other values for keys of the runner, e.g. train_cfg.max_iters=100 or "
            "'train_dataloader.dataset.storage_options={\"anon\": True}'",
        )
