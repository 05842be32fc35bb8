"""Shows a config as a run would see it: its settings first, then everything that was made of them.

python tools/print_config.py finetune_lora
python tools/print_config.py finetune_lora --set lr=5e-5 --cfg-options train_cfg.max_iters=100
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.arguments import add_config_options, parse_options  # noqa: E402
from xtuner_plugins.config_file import ConfigError, find_config, read_config  # noqa: E402
from xtuner_plugins.leaf import Leaf  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    add_config_options(parser)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        path = find_config(args.config)
        leaf = Leaf.read(path).changed(args.set)
        config = read_config(path, parse_options(args.cfg_options), leaf.standalone() if args.set else None)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"# ---- Settings of {path}")
    for name, setting in leaf.settings.items():
        comment = f"  # {setting.comment}" if setting.comment else ""
        print(f"{name} = {setting.source}{comment}")
    print("\n# ---- Resolved")
    print(config.pretty_text)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
