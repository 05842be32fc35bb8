"""How far an export in bfloat16 is from the trained model in float32: logits of text and of one tile.

    python benchmarks/bf16_gap.py CONFIG CHECKPOINT

Three models of one checkpoint: trained tensors in float32 (adapters merged in float32); weights cast to bfloat16 as
an export stores them, arithmetic in float32; the same, arithmetic in bfloat16. One JSON line with the largest and the
root mean square difference of logits, relative to the root mean square logit, and the share of equal best tokens.
"""

import argparse
import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
CONTEXT = 5  # stands for <IMG_CONTEXT>; which number doesn't matter to the arithmetic


@torch.no_grad()
def logits(config: Path, checkpoint: Path, stored: torch.dtype, computed: torch.dtype, num_text: int) -> torch.Tensor:
    from xtuner_plugins.checkpoints.loader import load_trained

    model = load_trained(config, checkpoint, dtype=stored).to(computed)
    model.img_context_token_id = CONTEXT
    generator = torch.Generator().manual_seed(0)
    side = model.config.force_image_size
    pixels = torch.randn(1, 3, side, side, generator=generator).to(computed)
    text = torch.randint(CONTEXT + 1, 400, (1, num_text), generator=generator)
    ids = torch.cat([torch.full((1, model.num_image_token), CONTEXT), text], 1)
    flags = torch.ones(1, 1, dtype=torch.long)
    result = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), image_flags=flags).logits
    del model
    gc.collect()
    return result.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-text", type=int, default=64, help="text tokens after the tile's")
    args = parser.parse_args()
    exact, *others = (
        logits(args.config, args.checkpoint, stored, computed, args.num_text)
        for stored, computed in [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2]
    )
    scale = exact.square().mean().sqrt()
    report = {}
    for name, other in zip(("bf16_weights", "bf16_weights_and_arithmetic"), others, strict=True):
        gap = (other - exact).abs()
        report[name] = {
            "largest": round(float(gap.max() / scale), 5),
            "rms": round(float(gap.square().mean().sqrt() / scale), 5),
            "same_best_token": round(float((other.argmax(-1) == exact.argmax(-1)).float().mean()), 4),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
