"""Exports a training checkpoint as a model directory, or converts a finished directory between formats.

    python tools/convert_to_official.py finetune_lora work_dirs/finetune_lora/iter_1000.pth exports/mine
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --format hf          # transformers' own InternVL
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --format llava       # CLIP or SigLIP with a plain MLP
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --adapter-only       # a PEFT directory
    python tools/convert_to_official.py --from InternVL3-1B-hf OUT                 # hf to official
    python tools/convert_to_official.py --from exports/mine OUT --format hf        # official to hf
    python tools/convert_to_official.py --from exports/mine OUT --format gguf      # for llama.cpp

CONFIG is the name of a config in configs/, or a path. It says where the base is now; the settings are those of
the checkpoint's record. CHECKPOINT is an MMEngine .pth, a DeepSpeed directory (ZeRO 1, 2 or 3) or an adapter from here.
Adapters are merged in fp32.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.processes import quiet_imports  # noqa: E402
from xtuner_plugins.settings import (  # noqa: E402
    ConfigError,
    add_config_options,  # noqa: E402
    parse_words,
    read_config,
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="CONFIG CHECKPOINT OUT", help="with --from: OUT alone")
    parser.add_argument("--from", dest="source", metavar="DIR", help="convert this finished model directory")
    parser.add_argument(
        "--format", choices=["official", "hf", "llava", "gguf"], help="default: as the base; with --from: official"
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="of all weights (default: as stored)"
    )
    parser.add_argument("--max-shard-size", default="4GB", help="largest weight file (default 4GB)")
    parser.add_argument(
        "--code", default="auto", choices=["auto", "ours"], help="model code to ship (auto: the base's, if it is whole)"
    )
    parser.add_argument(
        "--template",
        help="conversation template: which one, of a training with several; with --from, that of OUT",
    )
    parser.add_argument(
        "--max-tiles", type=int, help="tile limit: which one, of a training with several (default: the largest)"
    )
    parser.add_argument("--adapter-only", action="store_true", help="write the LoRA adapter as a PEFT directory")
    parser.add_argument(
        "--verify", action="store_true", help="open the export in a clean process and compare it with the trained model"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="with --verify: run the model code in the export even where it is the base's own, not this project's",
    )
    add_config_options(parser, cfg_options=False)
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    args = parser.parse_args(argv)
    expected = 1 if args.source else 3
    if len(args.paths) != expected:
        parser.error("give CONFIG CHECKPOINT OUT, or --from DIR OUT")
    if args.source and (args.adapter_only or args.verify or args.set):
        parser.error("--adapter-only, --verify and --set need a CONFIG and a CHECKPOINT")
    if args.format == "gguf" and (not args.source or args.template or args.force):
        parser.error("--format gguf converts a finished directory: --from DIR OUT, with --dtype alone")
    if args.adapter_only and (args.verify or args.format):
        parser.error("--adapter-only writes a PEFT directory: --verify and --format don't apply")
    if args.trust_remote_code and not args.verify:
        parser.error("--trust-remote-code goes with --verify; nothing else runs a directory's code")
    if args.template and args.adapter_only:
        parser.error("--adapter-only writes no template; an adapter keeps all that were trained with")
    if args.max_tiles is not None and (args.source or args.adapter_only):
        parser.error("--max-tiles chooses among the tile limits of a training, so it needs CONFIG CHECKPOINT OUT alone")
    return args


def run(args: argparse.Namespace, progress) -> str:
    if not args.source:
        config, checkpoint, out = open_config(args.paths[0], args.set), *args.paths[1:]
    quiet_imports()
    if args.format == "gguf":
        from xtuner_plugins.checkpoints import gguf

        done = gguf.convert(args.source, args.paths[0], dtype=args.dtype)
        run_it = f"llama-server -m {done['model']} --mmproj {done['mmproj']}"
        return f"wrote {done['num_bytes'] / 1e9:.2f} GB{_note(done)}\n{run_it}"
    from xtuner_plugins.checkpoints import export

    common = dict(dtype=args.dtype, max_shard_size=args.max_shard_size, force=args.force, progress=progress)
    if args.source:
        to = args.format or "official"
        done = export.convert(args.source, args.paths[0], format=to, template=args.template, **common)
        return f"wrote {done['out']} ({to}): {done['num_tensors']} tensors, {_size(done)}{_note(done)}"
    if args.adapter_only:
        from xtuner_plugins.checkpoints.lora.adapters import export_adapter

        done = export_adapter(config, checkpoint, out, dtype=args.dtype, force=args.force)
        return f"wrote {done['out']}: adapters of {', '.join(done['parts'])}, {done['num_tensors']} tensors"
    if args.verify:
        from xtuner_plugins.inference.verify import check_code_before, verify

        if not args.trust_remote_code:
            check_code_before(config, args.format, args.code)
    choice = dict(template=args.template, max_tiles=args.max_tiles)
    done = export.export(config, checkpoint, out, format=args.format, code=args.code, **choice, **common)
    text = (
        f"wrote {done['out']}: {done['num_tensors']} tensors ({done['num_replaced']} trained, "
        f"{done['num_merged']} adapters merged), {_size(done)}, from a {done['kind']} checkpoint"
        f"{_note(done)}"
    )
    if args.verify:
        text += "\n" + str(verify(config, checkpoint, out, trust_remote_code=args.trust_remote_code, **choice))
    return text


def open_config(name: str, pairs: list[str]):
    """The training config, with other values for some of its settings."""
    return read_config(name, parse_words(pairs))


def _note(done: dict) -> str:
    return "".join(f"\nnote: {note}" for note in done["notes"])


def _size(done: dict) -> str:
    return f"{done['num_bytes'] / 1e9:.2f} GB in {done['num_shards']} file(s)"


def main(argv=None) -> int:
    args = parse_args(argv)
    from tqdm import tqdm

    try:
        with tqdm(unit="B", unit_scale=True, desc="exporting", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            text = run(args, progress)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
