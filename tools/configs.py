"""Lists the configs of configs/, prints one as a run would see it, or writes one of your own.

    python tools/configs.py [--family toy] [--stage finetune]                 what each trains, and what it needs
    python tools/configs.py finetune_lora [--set lr=5e-5]                     its settings, and all that they become
    python tools/configs.py finetune_lora --write my_run.py --base models/base --data a.jsonl --images images --gpu 4090
    python tools/configs.py --from-xtuner internvl_v2_internlm2_5_8b_lora_finetune --write my_run.py

--write makes a config that takes in the named one and says what differs. With --gpu it also plans the run for one GPU:
tiles, length, batch, optimizer, workers, epochs and intervals; where nothing fits, the exit status is 2. --from-xtuner
writes an InternVL config of XTuner 0.2.0 (a path, or a name as `xtuner train` takes it): same data, settings, schedule.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins import settings  # noqa: E402
from xtuner_plugins.cli.shared import finish, make_parser  # noqa: E402
from xtuner_plugins.settings import SETTINGS, ConfigError, labels_of, leaves, read_config, value_at  # noqa: E402

LABELS = ("trains", "data", "hardware", "launch")
OF_WRITING = ("write", "base", "data", "images", "gpu")


def parse_args(argv=None) -> argparse.Namespace:
    parser, several = make_parser(__doc__), {"nargs": "+", "default": []}
    name = "a config of configs/ by its name, or a path; without it all are listed"
    parser.add_argument("name", nargs="?", help=name)
    parser.add_argument("--family", metavar="F", help="list the configs of this folder of configs/ only")
    parser.add_argument("--stage", metavar="S", help="list names that have this word only, e.g. pretrain, lora")
    settings.add_config_options(parser)
    parser.add_argument("--from-xtuner", metavar="CONFIG", help="the config of XTuner's to take over")
    parser.add_argument("--write", metavar="FILE", help="the Python file to write (--from-xtuner: default its name)")
    group = parser.add_argument_group("with --write")
    group.add_argument("--base", metavar="DIR", help="the model directory to train from")
    group.add_argument("--data", **several, metavar="FILE", help="annotation files (json or jsonl)")
    group.add_argument("--images", **several, metavar="DIR", help="image folders, one per file or for all")
    group.add_argument("--gpu", help="plan for one: a card's name, 24GB, or auto: this one")
    group.add_argument("--force", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    one_of = f"--family and --stage choose what is listed, and {args.name} is one config; leave out one of them"
    told = "to write a config, give NAME --write FILE --base DIR --data FILE --images DIR"
    is_whole = args.name and args.write and args.base and args.data and args.images
    if args.from_xtuner and (args.name or args.data or args.set or args.cfg_options):
        parser.error("--from-xtuner takes --write, --base and --force alone")
    if args.name and (args.family or args.stage):
        parser.error(one_of)
    if not args.from_xtuner and any(getattr(args, each) for each in OF_WRITING) and not is_whole:
        parser.error(told)
    if args.data and len(args.images) not in (0, 1, len(args.data)):
        parser.error(f"{len(args.images)} image folders for {len(args.data)} files; give one for each, or one for all")
    return args


def list_configs(args: argparse.Namespace) -> None:
    """Prints what the docstring of each config says, with the figures of its plan."""
    families = {name: path.parent.relative_to(settings.CONFIGS).as_posix() for name, path in leaves().items()}
    chosen = [
        (family.replace(".", ""), name)
        for name, family in families.items()
        if args.family in (None, family) and (args.stage is None or args.stage in name.split("_"))
    ]
    if not chosen:
        words = ", ".join(sorted({word for name in families for word in name.split("_")}))
        raise ConfigError(
            f"no such config; families: {', '.join(sorted(set(families.values()) - {'.'}))}; words: {words}"
        )
    for family, name in sorted(chosen):
        said = labels_of(leaves()[name])
        rows = {"family": family, "starts from": said["starts from"].partition(":")[0]}
        rows |= {key: said.get(key, "") for key in LABELS} | planned(name, said["launch"])
        print(name, *(f"  {key:<19} {value}" for key, value in rows.items() if value), "", sep="\n")


def planned(name: str, launch: str) -> dict[str, str]:
    """Parameters trained and memory of each GPU at its launch line; nothing where nobody knows the base."""
    from xtuner_plugins.planning.job import launched, strategy_named
    from xtuner_plugins.planning.memory import GIB
    from xtuner_plugins.planning.plan import plan_config

    gpus, deepspeed = launched(launch)
    try:
        plan = plan_config(read_config(name)._to_lazy_dict(), strategy_named(deepspeed, gpus))
    except ValueError:
        return {}
    return {"parameters trained": f"{plan.job.trained:,}", "each GPU, GiB": f"{plan.memory.total / GIB:.0f}"}


def print_config(args: argparse.Namespace) -> None:
    from xtuner_plugins.engine.check.text import check_values

    config, unset = read_config(args.name, settings.parse_words(args.set, args.cfg_options)), object()
    if args.set or args.cfg_options:  # a config that is printed as it is may be incomplete
        check_values(config._to_lazy_dict())
    print(f"# ---- Settings of {config.filename}; those without a value have the default of their class")
    for name, setting in SETTINGS.items():
        value = value_at(config, setting.key, unset)
        print(f"{name}{'' if value is unset else f' = {value!r}'}  # {setting.key}: {setting.words}")
    print(f"\n# ---- Resolved\n{config.pretty_text}")


def write_config(args: argparse.Namespace) -> None:
    from xtuner_plugins.cli.own_config import write_own

    write_own(args)


def take_over(args: argparse.Namespace) -> None:
    from xtuner_plugins.cli.from_xtuner import import_config

    import_config(args.from_xtuner, Path(args.write or f"{Path(args.from_xtuner).stem}.py"), args.base, args.force)


def main(argv=None) -> int:
    args = parse_args(argv)
    act = take_over if args.from_xtuner else write_config if args.write else print_config if args.name else list_configs
    return finish(lambda: act(args))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
