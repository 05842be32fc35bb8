"""Writes an InternVL config of XTuner 0.2.0's own as one of this project: same data, settings and schedule.

python tools/import_xtuner_config.py internvl_v2_internlm2_5_8b_lora_finetune
python tools/import_xtuner_config.py my_internvl.py my_run.py --base models/InternVL2-8B
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.from_xtuner import check_out  # noqa: E402
from xtuner_plugins.settings import ConfigError  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="XTuner's config: a path, or a name as `xtuner train` takes it")
    parser.add_argument("out", nargs="?", help="the Python file to write; default: the config's name, here")
    parser.add_argument("--base", metavar="DIR", help="the model directory to train from; default: the config's own")
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    out = Path(args.out or f"{Path(args.config).stem}.py")
    try:
        write_config(args, out)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_config(args: argparse.Namespace, out: Path) -> None:
    """Writes OUT, and prints what it couldn't say and how it is started."""
    from xtuner_plugins.cli.from_xtuner import import_config

    if out.exists() and Path(args.config).exists() and out.samefile(args.config):
        raise ConfigError(f"{out} is the config itself; name another OUT")
    check_out(out, args.force)
    imported = import_config(args.config, out, args.base)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(imported.text, encoding="utf-8")
    for missing in [path for path in imported.paths if "://" not in path and not Path(path).exists()]:
        print(f"warning: {missing} does not exist yet", file=sys.stderr)
    for note in imported.notes:
        print(f"note: {note}")
    print(f"wrote {out} on top of {imported.parent}; start it with\n{imported.launch}")


if __name__ == "__main__":
    sys.exit(main())
