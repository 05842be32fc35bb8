"""Puts a vision tower and a language model together as an official InternVL directory.

    python tools/build_base_model.py --vision InternViT-300M-448px-V2_5 --llm Qwen2.5-1.5B-Instruct --out models/base

Directories, or hub names (org/model) where the network allows.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import finish  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vision",
        required=True,
        help="InternViT, DINOv2, DINOv3, CLIP or SigLIP directory (whole or tower), or an official one for its tower",
    )
    parser.add_argument(
        "--llm",
        required=True,
        help="language model directory with its tokenizer, or a model directory whose language model is taken",
    )
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--template", help="conversation template (default: the language model's own)")
    parser.add_argument("--system", help="system message in place of the template's; '' for none")
    parser.add_argument(
        "--max-tiles",
        type=int,
        help="tiles per image, thumbnail not counted (default 12; 1 with projector types mlp and bilinear_mlp)",
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of the stored weights"
    )
    parser.add_argument("--projector", help="model directory, or file with mlp1.* weights (default: a fresh projector)")
    parser.add_argument(
        "--projector-type",
        choices=["pixel_shuffle_mlp", "mlp", "bilinear_mlp"],
        help="InternVL's (default for InternViT), LLaVA's without merging of patches (default for CLIP and SigLIP), or "
        "LLaVA's after a bilinear reduction of the patch grid to half its side",
    )
    parser.add_argument(
        "--select-layer",
        type=int,
        help="vision layer to use (default -1, CLIP and SigLIP -2); InternViT's layers after it are left out",
    )
    parser.add_argument("--tile-size", type=int, help="side of a tile in pixels, for DINOv2 and DINOv3 (default 448)")
    rgb = dict(type=float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--image-mean", **rgb, help="that the tower was trained with, if not known; folded in")
    parser.add_argument("--image-std", **rgb, help="likewise")
    parser.add_argument("--max-shard-size", default="4GB", help="largest weight file (default 4GB)")
    parser.add_argument("--flash", action="store_true", help="add InternVL3.5-Flash's projector and router, fresh")
    parser.add_argument("--seed", type=int, default=0, help="of what is fresh")
    parser.add_argument("--force", action="store_true", help="replace an existing --out")
    return parser.parse_args(argv)


def build(options: dict) -> None:
    from tqdm import tqdm

    from xtuner_plugins.export.base.build import build_base

    with tqdm(unit="B", unit_scale=True, desc="writing weights", disable=None) as bar:
        summary = build_base(**options, progress=bar.update)
    print(
        f"wrote {summary['out']}: {summary['num_parameters']:,} parameters, {summary['num_bytes'] / 1e9:.2f} GB, "
        f"vocabulary {summary['vocab_size']} ({summary['num_new_tokens']} tokens added), "
        f"{summary['num_image_token']} tokens per tile, template {summary['template']}, "
        f"projector: {summary['projector']}"
    )
    print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in summary["parts"].items()))
    for note in summary["notes"]:
        print(f"note: {note}")


def main(argv=None) -> int:
    args = parse_args(argv)
    return finish(lambda: build(vars(args)))


if __name__ == "__main__":
    sys.exit(main())
