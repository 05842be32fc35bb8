"""Shows a config as a run would see it: its settings by their short names first, then all of it.

python tools/print_config.py finetune_lora
python tools/print_config.py finetune_lora --set lr=5e-5 --cfg-options train_cfg.max_iters=100
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.settings import (  # noqa: E402
    SETTINGS,
    ConfigError,
    add_config_options,  # noqa: E402
    parse_words,
    read_config,
    value_at,
)

UNSET = object()


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of configs/ by its name, e.g. finetune_lora, or a path")
    add_config_options(parser)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        config = read_config(args.config, parse_words(args.set, args.cfg_options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"# ---- Settings of {config.filename}; those without a value have the default of their class")
    for name, setting in SETTINGS.items():
        value = value_at(config, setting.key, UNSET)
        print(f"{name}{'' if value is UNSET else f' = {value!r}'}  # {setting.key}: {setting.words}")
    print("\n# ---- Resolved")
    print(config.pretty_text)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
