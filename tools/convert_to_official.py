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

from xtuner_plugins.cli.shared import add_weights, command, make_parser  # noqa: E402
from xtuner_plugins.processes import quiet_imports  # noqa: E402
from xtuner_plugins.settings import add_config_options, parse_words, read_config  # noqa: E402
from xtuner_plugins.weights.work_dir import newest_checkpoint  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="CONFIG CHECKPOINT OUT", help="with --from: OUT alone")
    parser.add_argument("--from", dest="source", metavar="DIR", help="convert this finished model directory")
    formats = ["official", "hf", "llava", "peft", "gguf"]
    parser.add_argument("--format", choices=formats, help="default: as the base; with --from: official")
    template = "conversation template: which one, of a training with several; with --from, that of OUT"
    parser.add_argument("--template", help=template)
    tiles = "tile limit: which one, of a training with several (default: the largest)"
    parser.add_argument("--max-tiles", type=int, help=tiles)
    told = "compare OUT with base and checkpoint (or with DIR): files, tensors, and answers in a clean process"
    parser.add_argument("--verify", action="store_true", help=told)
    add_weights(parser)
    add_config_options(parser, cfg_options=False)
    args = parser.parse_args(argv)
    peft = args.format == "peft"
    if len(args.paths) != (1 if args.source else 3):
        parser.error("give CONFIG CHECKPOINT OUT, or --from DIR OUT")
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
        told = f"wrote {done['num_bytes'] / 1e9:.2f} GB", *(f"note: {note}" for note in done["notes"])
        print(*told, f"llama-server -m {done['model']} --mmproj {done['mmproj']}", sep="\n")
        return
    if args.format == "peft":
        from xtuner_plugins.export.adapters import export_adapter

        done = export_adapter(config, checkpoint, out, dtype=dtype, force=args.force)
        print(f"wrote {done['out']}: adapters of {', '.join(done['parts'])}, {done['num_tensors']} tensors")
        return

    from xtuner_plugins.export import card, export

    if args.source:
        form = args.format or "official"
        job = export.prepare_conversion(args.source, format=form, dtype=dtype, template=args.template)
    else:
        choice = dict(template=args.template, max_tiles=args.max_tiles)
        job = export.prepare(config, checkpoint, format=args.format, dtype=dtype, **choice)
    done = export.write(job, out, force=args.force)
    trained = "" if args.source else f" ({done['num_replaced']} trained, {done['num_merged']} adapters merged)"
    text = f"wrote {done['out']}: {done['num_tensors']} tensors{trained}, {done['num_bytes'] / 1e9:.2f} GB in "
    notes = (f"note: {note}" for note in done["notes"])
    print(f"{text}{done['num_shards']} file(s)", *notes, sep="\n", flush=True)  # however the verification ends
    if args.verify:
        from xtuner_plugins.inference.verify import verify

        report = verify(job, done["out"])
        print(report.text)
        if not args.source:
            card.fill(out, "tensors", changed=report.changed)


main = command(parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
