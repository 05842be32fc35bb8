"""Exports a training checkpoint as an official InternVL directory.

    python tools/convert_to_official.py configs/finetune_lora.py work_dirs/finetune_lora/iter_1000.pth exports/mine

CHECKPOINT is an MMEngine .pth, a DeepSpeed directory (ZeRO 1, 2 or 3) or a PEFT adapter. Adapters are merged in fp32.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="training config")
    parser.add_argument("checkpoint", help="iter_N.pth, file or directory")
    parser.add_argument("out", help="directory to write")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="of all weights (default: as the base)"
    )
    parser.add_argument("--max-shard-size", default="4GB", help="largest weight file (default 4GB)")
    parser.add_argument(
        "--code", default="auto", choices=["auto", "ours"], help="model code to ship (auto: the base's own)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    from tqdm import tqdm

    from xtuner_plugins.checkpoints.export import export

    try:
        with tqdm(unit="B", unit_scale=True, desc="exporting", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            summary = export(
                args.config,
                args.checkpoint,
                args.out,
                dtype=args.dtype,
                max_shard_size=args.max_shard_size,
                code=args.code,
                force=args.force,
                progress=progress,
            )
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(
        f"wrote {summary['out']}: {summary['num_tensors']} tensors ({summary['num_replaced']} trained, "
        f"{summary['num_merged']} adapters merged), {summary['num_bytes'] / 1e9:.2f} GB "
        f"in {summary['num_shards']} file(s), from a {summary['kind']} checkpoint"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
