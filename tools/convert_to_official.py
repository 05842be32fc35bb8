"""Exports a training checkpoint as a model directory, or converts a finished directory between formats.

    python tools/convert_to_official.py finetune_lora work_dirs/finetune_lora exports/mine     # its newest checkpoint
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --format hf          # transformers' own InternVL
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --format llava       # CLIP or SigLIP with a plain MLP
    python tools/convert_to_official.py CONFIG CHECKPOINT OUT --format peft        # the LoRA adapters, for PEFT
    python tools/convert_to_official.py --from InternVL3-1B-hf OUT                 # hf to official
    python tools/convert_to_official.py --from exports/mine OUT --format hf        # official to hf
    python tools/convert_to_official.py --from exports/mine OUT --format gguf      # for llama.cpp

CONFIG is the name of a config in configs/, or a path. It says where the base is now; the settings are those of
the checkpoint's record. CHECKPOINT is an MMEngine .pth, a DeepSpeed directory (ZeRO 1, 2 or 3), an adapter from here,
or a work directory, whose newest whole checkpoint is taken. Adapters are merged in fp32.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import finish  # noqa: E402
from xtuner_plugins.processes import quiet_imports  # noqa: E402
from xtuner_plugins.settings import add_config_options, parse_words, read_config  # noqa: E402
from xtuner_plugins.weights.work_dir import newest_checkpoint  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="CONFIG CHECKPOINT OUT", help="with --from: OUT alone")
    parser.add_argument("--from", dest="source", metavar="DIR", help="convert this finished model directory")
    formats = ["official", "hf", "llava", "peft", "gguf"]
    parser.add_argument("--format", choices=formats, help="default: as the base; with --from: official")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="of all weights (default: as stored)"
    )
    parser.add_argument("--max-shard-size", default="4GB", help="largest weight file (default 4GB)")
    parser.add_argument(
        "--template",
        help="conversation template: which one, of a training with several; with --from, that of OUT",
    )
    parser.add_argument(
        "--max-tiles", type=int, help="tile limit: which one, of a training with several (default: the largest)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare OUT with base and checkpoint (or with DIR): files, tensors, and answers in a clean process",
    )
    add_config_options(parser, cfg_options=False)
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    args = parser.parse_args(argv)
    expected = 1 if args.source else 3
    if len(args.paths) != expected:
        parser.error("give CONFIG CHECKPOINT OUT, or --from DIR OUT")
    peft = args.format == "peft"
    if args.source and (peft or args.set or args.max_tiles is not None):
        parser.error("--format peft, --set and --max-tiles need a CONFIG and a CHECKPOINT")
    if args.format == "gguf" and (not args.source or args.template or args.force or args.verify):
        parser.error("--format gguf converts a finished directory: --from DIR OUT, with --dtype alone")
    if peft and (args.verify or args.template or args.max_tiles is not None):
        parser.error("--format peft writes adapters alone: --verify, --template and --max-tiles don't apply")
    return args


def run(args: argparse.Namespace) -> None:
    out, dtype = args.paths[-1], args.dtype
    if not args.source:
        config = read_config(args.paths[0], parse_words(args.set))
        checkpoint = newest_checkpoint(args.paths[1]) or args.paths[1]
    quiet_imports()
    if args.format == "gguf":
        from xtuner_plugins.export import gguf

        done = gguf.convert(args.source, out, dtype=dtype)
        print(f"wrote {done['num_bytes'] / 1e9:.2f} GB{_notes(done)}")
        print(f"llama-server -m {done['model']} --mmproj {done['mmproj']}")
        return
    if args.format == "peft":
        from xtuner_plugins.export.adapters import export_adapter

        done = export_adapter(config, checkpoint, out, dtype=dtype, force=args.force)
        print(f"wrote {done['out']}: adapters of {', '.join(done['parts'])}, {done['num_tensors']} tensors")
        return
    from tqdm import tqdm

    from xtuner_plugins.export import export

    if args.source:
        job = export.prepare_conversion(
            args.source, format=args.format or "official", dtype=dtype, template=args.template
        )
    else:
        choice = dict(template=args.template, max_tiles=args.max_tiles)
        job = export.prepare(config, checkpoint, format=args.format, dtype=dtype, **choice)
    options = dict(max_shard_size=args.max_shard_size, force=args.force)
    with tqdm(total=job.draft.num_bytes, unit="B", unit_scale=True, desc="exporting", disable=None) as bar:
        done = export.write(job, out, **options, progress=bar.update)
    trained = "" if args.source else f" ({done['num_replaced']} trained, {done['num_merged']} adapters merged)"
    text = f"wrote {done['out']}: {done['num_tensors']} tensors{trained}, {done['num_bytes'] / 1e9:.2f} GB in "
    print(f"{text}{done['num_shards']} file(s){_notes(done)}", flush=True)  # however the verification ends
    if args.verify:
        from xtuner_plugins.export import card
        from xtuner_plugins.inference.verify import verify

        report = verify(job, done["out"])
        print(report.text)
        if not args.source:
            card.fill(out, "tensors", changed=report.changed)


def _notes(done: dict) -> str:
    return "".join(f"\nnote: {note}" for note in done["notes"])


def main(argv=None) -> int:
    args = parse_args(argv)
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
