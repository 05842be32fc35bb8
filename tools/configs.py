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
import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import finish, make_parser  # noqa: E402
from xtuner_plugins.settings import (  # noqa: E402
    CONFIGS,
    SETTINGS,
    ConfigError,
    add_config_options,
    find_config,
    labels_of,
    leaves,
    parse_words,
    read_config,
    value_at,
)

LABELS = ("trains", "data", "hardware", "launch")
OF_WRITING = ("base", "data", "images", "val", "val_images", "gpu")
FEW_STEPS = 30  # in which hardly anything is learned
PARTS = {"visual_encoder": "vision encoder", "projector": "projector", "llm": "LLM"}


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "name", nargs="?", help="a config of configs/ by its name, or a path; without it all are listed"
    )
    parser.add_argument("--family", metavar="F", help="list the configs of this folder of configs/ only")
    parser.add_argument("--stage", metavar="S", help="list names that have this word only, e.g. pretrain, lora")
    add_config_options(parser)
    parser.add_argument(
        "--write", metavar="FILE", help="write a Python file (--from-xtuner: default the same name, here)"
    )
    parser.add_argument("--base", metavar="DIR", help="with --write: the model directory to train from")
    several = {"nargs": "+", "default": []}
    parser.add_argument("--data", **several, metavar="FILE", help="with --write: annotation files (json or jsonl)")
    parser.add_argument(
        "--images", **several, metavar="DIR", help="with --write: image folders, one per file or for all"
    )
    parser.add_argument("--val", **several, metavar="FILE", help="with --write: annotation files to validate on")
    parser.add_argument(
        "--val-images", **several, metavar="DIR", help="their image folders (default: that of --images)"
    )
    parser.add_argument(
        "--gpu", metavar="GPU", help="with --write: plan for one; a card's name, 24GB, or auto: this one"
    )
    parser.add_argument("--from-xtuner", metavar="CONFIG", help="the config of XTuner's to take over")
    parser.add_argument("--force", action="store_true", help="with --write: replace an existing file")
    args = parser.parse_args(argv)
    if args.from_xtuner and (args.name or args.data or args.set or args.cfg_options):
        parser.error("--from-xtuner takes --write, --base and --force alone")
    if args.name and (args.family or args.stage):
        parser.error(
            f"--family and --stage choose what is listed, and {args.name} is one config; leave out one of them"
        )
    if args.name and args.write:
        check_writing(parser, args)
    elif not args.from_xtuner and (args.write or any(getattr(args, name) for name in OF_WRITING)):
        parser.error("to write a config, give NAME --write FILE --base DIR --data FILE --images DIR")
    return args


def check_writing(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not (args.base and args.data and args.images):
        parser.error("--write needs --base, --data and --images")
    if args.val_images and not args.val:
        parser.error("--val-images goes with --val")
    if args.val and not args.val_images and len(args.images) > 1:
        parser.error("--val with several --images; name the folders of its images with --val-images")
    args.val_images = args.val_images or args.images
    for name, files, folders in (("data", args.data, args.images), ("val", args.val, args.val_images)):
        if files and len(folders) not in (1, len(files)):
            told = "give one for each, or one for all"
            parser.error(f"{len(folders)} image folders for {len(files)} files of --{name}; {told}")


def list_configs(args: argparse.Namespace) -> None:
    """Prints what the docstring of each config says, with the figures of its plan."""
    chosen = {}
    for name, path in leaves().items():
        family = path.parent.relative_to(CONFIGS).as_posix().replace(".", "")
        if args.family in (None, family) and (args.stage is None or args.stage in name.split("_")):
            chosen[family, name] = path
    if not chosen:
        families = sorted({path.parent.relative_to(CONFIGS).as_posix() for path in leaves().values()} - {"."})
        words = sorted({word for name in leaves() for word in name.split("_")})
        raise ConfigError(f"no such config; families: {', '.join(families)}; words: {', '.join(words)}")
    for (family, name), path in sorted(chosen.items()):
        said = labels_of(path)
        rows = {"family": family, "starts from": said["starts from"].partition(":")[0]}
        rows |= {key: said.get(key, "") for key in LABELS} | planned(name, said["launch"])
        print(name, *(f"  {key:<19} {value}" for key, value in rows.items() if value), "", sep="\n")


def planned(name: str, launch: str) -> dict[str, str]:
    """Parameters trained and memory of each GPU at its launch line; nothing where nobody knows the base."""
    from xtuner_plugins.planning.memory import GIB
    from xtuner_plugins.planning.plan import plan_config
    from xtuner_plugins.planning.strategies import launched, strategy_named

    gpus, deepspeed = launched(launch)
    try:
        plan = plan_config(read_config(name)._to_lazy_dict(), strategy_named(deepspeed, gpus))
    except ValueError:
        return {}
    return {"parameters trained": f"{plan.job.trained:,}", "each GPU, GiB": f"{plan.memory.total / GIB:.0f}"}


def print_config(args: argparse.Namespace) -> None:
    config, unset = read_config(args.name, parse_words(args.set, args.cfg_options)), object()
    print(f"# ---- Settings of {config.filename}; those without a value have the default of their class")
    for name, setting in SETTINGS.items():
        value = value_at(config, setting.key, unset)
        print(f"{name}{'' if value is unset else f' = {value!r}'}  # {setting.key}: {setting.words}")
    print("\n# ---- Resolved")
    print(config.pretty_text)


def write_config(args: argparse.Namespace) -> None:
    from xtuner_plugins.cli.from_xtuner import check_out, derive, launch_line
    from xtuner_plugins.engine.check.text import check_values
    from xtuner_plugins.files import absolute_path, names_data, names_images

    out, path = Path(args.write), Path(find_config(args.name))
    check_out(out, args.force)
    parent = path.stem
    if parent not in leaves() or not path.samefile(leaves()[parent]):
        raise ConfigError(f"{path} is no config of configs/; take it in as docs/training.md shows")
    given = [args.base, *args.data, *args.images, *args.val]
    warn_of(name for name in given if not (names_data(name) or names_images(name)))
    # Absolute, so that the run may be started in any directory.
    data, images, val, folders = (
        [absolute_path(each) for each in names] for names in (args.data, args.images, args.val, args.val_images)
    )
    base = os.path.abspath(args.base)
    values = {"base": base, "data_paths": data, "image_folders": images * (len(data) // len(images))}
    if val:
        values |= {"val_data_paths": val, "val_image_folders": folders * (len(val) // len(folders))}
    changes = {SETTINGS[name].key: value for name, value in values.items()}
    changes |= parse_words(args.set, args.cfg_options)
    check_values(read_config(parent, changes)._to_lazy_dict())  # each key is there
    launch, theirs = launch_line(parent, out), labels_of(leaves()[parent])
    labels = {
        "title": f"As {parent}, with a base and data of one's own.",
        **{key: theirs[key] for key in ("trains", "frozen")},
        "starts from": base,
        "data": f"{', '.join(data)}; images in {', '.join(images)}",
    }
    remarks = take_released_rate(parent, changes)
    if args.gpu:
        launch = re.sub(r"NPROC_PER_NODE=\d+ | --deepspeed \S+", "", launch)
        changes, told, remark = plan_for_gpu(parent, changes, args.gpu)
        labels, remarks = labels | told, remarks | remark
    labels["launch"] = launch
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(derive(parent, labels, changes, remarks), encoding="utf-8")
    print(f"wrote {out}; start it with\n{launch}")


def take_released_rate(parent: str, changes: dict) -> dict[str, str]:
    """Sets the rate of a released base where it isn't the recipe's and no other is asked for; returns its remark."""
    from xtuner_plugins.planning.published import other_rate

    key, config = SETTINGS["lr"].key, read_config(parent, changes)
    rate = other_rate(config.model, value_at(config, key))
    if key in changes or rate is None:
        return {}
    changes[key] = rate
    print(f"lr={rate:g}, for {os.path.basename(config.model.base)}; {parent} has {value_at(config, key):g}")
    return {key: "for this release"}


def plan_for_gpu(parent: str, changes: dict, name: str) -> tuple[dict, dict[str, str], dict[str, str]]:
    """The keys of a run on one GPU, labels that describe this run and base, and remarks; prints what to expect."""
    from xtuner_plugins.planning.choose import choose
    from xtuner_plugins.planning.hardware import find_gpu
    from xtuner_plugins.planning.report import sentence

    gpu = find_gpu(name)
    run = choose(parent, changes, gpu)
    job, changes, hardware = run.plan.job, dict(run.changes), sentence(run.memory, run.plan, gpu)
    batch, counts = (SETTINGS[each].key for each in ("batch_size", "accumulative_counts"))
    unit = "packs" if SETTINGS["pack_tokens"].key in changes else "samples"
    step = f"x {changes[counts]} accumulation x 1 GPU = {changes[batch] * changes[counts]} {unit} per step"
    trains = [words for part, words in PARTS.items() if part in job.whole]
    trains += [f"LoRA of rank {lora.rank} on the {PARTS[part]}" for part, lora in job.adapters.items()]
    own = {part: f"the {words}'s own weights" for part, words in PARTS.items() if part in job.adapters}
    frozen = [own.get(part, words) for part, words in PARTS.items() if part not in job.whole]
    frozen += ["in 4 bits"] * bool(job.quantized)
    print(hardware)
    if run.plan.steps and run.plan.steps < FEW_STEPS:
        print(
            f"{run.plan.steps} steps are few: LoRA takes fewer samples per step, or set a smaller accumulative_counts"
        )
    if gpu.dtype == "float32":
        print("no GPU was found: on a processor this is a trial (max_steps=20); --gpu 4090 plans for another machine")
    labels = {
        "title": f"{os.path.basename(run.plan.model)}, {parent}, on one GPU.",
        "trains": f"{', '.join(trains)}: {job.trained:,} of {job.shape.parameters:,} parameters",
        "frozen": ", ".join(frozen) or "nothing",
        "hardware": hardware,
    }
    return changes, labels, {batch: step}


def take_over(args: argparse.Namespace) -> None:
    """Writes XTuner's config as one of ours, and prints what it couldn't say and how it is started."""
    from xtuner_plugins.cli.from_xtuner import check_out, import_config

    out = Path(args.write or f"{Path(args.from_xtuner).stem}.py")
    if out.exists() and Path(args.from_xtuner).exists() and out.samefile(args.from_xtuner):
        raise ConfigError(f"{out} is the config itself; name another file with --write")
    check_out(out, args.force)
    imported = import_config(args.from_xtuner, out, args.base)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(imported.text, encoding="utf-8")
    warn_of(path for path in imported.paths if "://" not in path and not Path(path).exists())
    for note in imported.notes:
        print(f"note: {note}")
    print(f"wrote {out} on top of {imported.parent}; start it with\n{imported.launch}")


def warn_of(missing) -> None:
    for path in missing:
        print(f"warning: {path} does not exist yet", file=sys.stderr)


def main(argv=None) -> int:
    args = parse_args(argv)
    act = take_over if args.from_xtuner else write_config if args.write else print_config if args.name else list_configs
    return finish(lambda: act(args))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
