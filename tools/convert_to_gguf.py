"""Writes a model directory as GGUF files for llama.cpp: language model and mmproj.

    python tools/convert_to_gguf.py exports/mine exports/mine-gguf
    python tools/convert_to_gguf.py exports/mine exports/mine-gguf --type q4_k_m --mmproj-type q8_0

MODEL is an export or a base with InternViT and Qwen2, Qwen3 or Llama, in the official or the hf format. Without --type
the numbers stay as stored. f32, f16, bf16 and q8_0 need the package gguf, q4_k_m needs xllamacpp too.

Exit status: 0 when both files are written; 1 when they can't be; 2 for a wrong command line; 130 after Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("out", help="folder for the two files")
    parser.add_argument("--type", choices=TYPES, help="of the language model's matrices (default: as stored)")
    parser.add_argument("--mmproj-type", choices=TYPES[:-1], help="default: as --type, f16 if that is quantized")
    parser.add_argument("--name", help="in the files' names (default: the directory's)")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> str:
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    try:
        from xtuner_plugins.checkpoints.llama_cpp.convert import convert
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ValueError("the package gguf is missing: pip install -r requirements.txt") from None
    from tqdm import tqdm

    from xtuner_plugins.checkpoints.io.writer import format_size

    with tqdm(unit="B", unit_scale=True, desc="converting", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        choice = {"kind": args.type, "mmproj_kind": args.mmproj_type, "name": args.name, "force": args.force}
        done = convert(args.model, args.out, **choice, progress=progress)
    lines = [f"wrote {done.model} and {done.mmproj}: {format_size(done.num_bytes)}"]
    lines += [f"note: {note}" for note in done.notes]
    return "\n".join([*lines, f"llama-server -m {done.model} --mmproj {done.mmproj}"])


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the unfinished file is removed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
