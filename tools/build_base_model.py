"""Puts a vision tower and a language model together as an official InternVL directory.

    python tools/build_base_model.py --vision InternViT-300M-448px-V2_5 --llm Qwen2.5-1.5B-Instruct --out models/base

Directories, or hub names (org/model) where the network allows. --vision takes InternViT, DINOv2, DINOv3, CLIP or SigLIP
(whole, or the tower), --llm a language model with its tokenizer, and both a whole model, whose tower or LLM is taken.

Projector types: pixel_shuffle_mlp is InternVL's (the default), mlp LLaVA's without merging of patches (the default
for CLIP and SigLIP), bilinear_mlp LLaVA's after a bilinear reduction of the patch grid to half its side.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import add_weights, command, make_parser  # noqa: E402

TYPES = ("pixel_shuffle_mlp", "mlp", "bilinear_mlp")


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--vision", required=True, help="directory of the vision tower")
    parser.add_argument("--llm", required=True, help="directory of the language model")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--template", help="conversation template (default: the language model's own)")
    parser.add_argument("--system", help="system message in place of the template's; '' for none")
    tiles = "tiles per image, thumbnail not counted (default 12; 1 with projector types mlp and bilinear_mlp)"
    parser.add_argument("--max-tiles", type=int, help=tiles)
    parser.add_argument("--projector", help="model directory, or file with mlp1.* weights (default: a fresh projector)")
    parser.add_argument("--projector-type", choices=TYPES, help="of a fresh one; see above")
    layer = "vision layer to use (default -1, CLIP and SigLIP -2); InternViT's layers after it are left out"
    parser.add_argument("--select-layer", type=int, help=layer)
    parser.add_argument("--tile-size", type=int, help="side of a tile in pixels, for DINOv2 and DINOv3 (default 448)")
    parser.add_argument("--flash", action="store_true", help="add InternVL3.5-Flash's projector and router, fresh")
    parser.add_argument("--seed", type=int, default=0, help="of what is fresh")
    add_weights(parser, dtype="bfloat16")
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    from xtuner_plugins.export.base.build import build_base

    done = build_base(**vars(args))
    print(
        f"wrote {done['out']}: {done['num_parameters']:,} parameters, {done['num_bytes'] / 1e9:.2f} GB, "
        f"vocabulary {done['vocab_size']} ({done['num_new_tokens']} tokens added), {done['num_image_token']} tokens "
        f"per tile, template {done['template']}, projector: {done['projector']}"
    )
    print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in done["parts"].items()))
    print(*(f"note: {note}\n" for note in done["notes"]), sep="", end="")


main = command(parse_args, build)

if __name__ == "__main__":
    sys.exit(main())
