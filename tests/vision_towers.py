"""Tiny random CLIP and SigLIP directories, as transformers saves them."""

import json
from pathlib import Path

import torch
import transformers

from xtuner_plugins.families import ENCODER_FAMILIES

SIZES = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=14
)
NORMALIZATION = {row.whole_type: (row.image_mean, row.image_std) for row in ENCODER_FAMILIES.values() if row.whole_type}
NAMES = {"clip": "CLIP", "siglip": "Siglip"}


def whole_model(kind: str, seed: int = 0, **sizes):
    """A whole model of ``kind`` clip or siglip, image and text side; every tensor random and far from zero."""
    name = NAMES[kind]
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    text |= dict(max_position_embeddings=16, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config={**SIZES, **sizes})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}Model")(config).eval()
        for parameter in model.parameters():  # of matrices about one over the root of their width
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def write_tower(folder: Path, kind: str, *, whole: bool = False, seed: int = 0, **sizes):
    """Writes the whole model or its vision side, with a preprocessor config; returns the vision model.

    Args:
        folder: Where to write.
        kind: clip or siglip.
        whole: With the text side, as some releases are published.
        seed: The same seed gives the same weights.
        **sizes: Fields of the vision config that differ from `SIZES`.
    """
    model = whole_model(kind, seed, **sizes)
    tower = getattr(transformers, f"{NAMES[kind]}VisionModel")(model.config.vision_config).eval()
    inner = getattr(tower, "vision_model", tower)  # transformers 5 has no class around it
    inner.load_state_dict(model.vision_model.state_dict())
    (model if whole else tower).save_pretrained(folder)
    mean, std = NORMALIZATION[kind]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    return tower
