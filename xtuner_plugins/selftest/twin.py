"""A tiny model of the same classes as a config's base, with random weights and the base's own tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import tokenizer_files
from ..checkpoints.formats import official, open_config
from ..checkpoints.io.reader import read_json
from ..checkpoints.io.writer import write_json
from ..checkpoints.loader import empty_model
from ..recipes.plan import known_base
from ..toy.bases import write_tiny_base
from ..toy.models import random_tensors

WIDTH, INNER, HEADS, GROUPS = 64, 128, 4, 2
HEAD_DIM = WIDTH // HEADS
LAYERS = 2  # of the language model
SIDE = 8  # patches of a tile's side, one more where the base's number is odd
# Fields of a mixture of experts, if the language model has them, and their greatest values here.
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
COPIED = ("generation_config.json", "preprocessor_config.json", *tokenizer_files.FILES)


def write_twin(base: str, folder: Path, last_layers: int = 0) -> tuple[Path, str]:
    """Writes the twin of a model directory; one that isn't there is taken from the recipes.

    Args:
        base: The config's.
        folder: Gets the twin; made when missing.
        last_layers: Blocks of the encoder that the config trains, see `VisionLanguageModel`.

    Returns:
        The directory, and what it is made after.

    Raises:
        ConfigError: No such directory, and no recipe starts from it.
        CheckpointError: A directory that is no model.
    """
    if Path(base, "config.json").is_file():
        return shrink_base(Path(base), folder / "base", last_layers), f"configs and tokenizer of {base}"
    row = known_base(base)
    return write_tiny_base(row, folder), f"{row.name}'s classes and a toy tokenizer ({base} isn't there)"


def shrink_base(base: Path, out: Path, last_layers: int = 0) -> Path:
    """Writes an official directory like ``base`` with a few narrow layers; no weight of ``base`` is read."""
    from safetensors.torch import save_file

    fields = open_config(base)[2]
    vision = _shrunk_vision(fields["vision_config"], abs(fields["select_layer"]) + last_layers)
    config = {
        **fields,
        "vision_config": vision,
        "llm_config": _shrunk_llm(fields["llm_config"]),
        "force_image_size": vision["image_size"],
        "torch_dtype": "float32",
        "auto_map": dict(official.AUTO_MAP),
        "architectures": ["InternVLChatModel"],
    }
    config.pop("hidden_size", None)  # of the language model, which some read from here
    out.mkdir(parents=True)
    for name in COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    save_file(random_tensors(shapes, seed=0), out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config)
    return out


def _shrunk_vision(fields: Mapping[str, Any], last_layers: int) -> dict[str, Any]:
    """``last_layers`` counts from the last block; features come from one of them, or the config trains them."""
    is_odd = fields["image_size"] // fields["patch_size"] % 2
    return {
        **fields,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": min(fields["num_hidden_layers"], max(3, last_layers + 1)),
        "image_size": (SIDE + is_odd) * fields["patch_size"],
        "torch_dtype": "float32",
    }


def _shrunk_llm(fields: Mapping[str, Any]) -> dict[str, Any]:
    is_grouped = fields.get("num_key_value_heads", fields["num_attention_heads"]) != fields["num_attention_heads"]
    small = {
        **fields,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS if is_grouped else HEADS,
        "num_hidden_layers": LAYERS,
        "torch_dtype": "float32",
    }
    if fields.get("head_dim"):
        small["head_dim"] = HEAD_DIM
    if fields.get("layer_types"):
        small["layer_types"] = list(fields["layer_types"])[:LAYERS]
    if "max_window_layers" in fields:
        small["max_window_layers"] = min(fields["max_window_layers"], LAYERS)
    small |= {name: min(fields[name], most) for name, most in EXPERTS.items() if fields.get(name)}
    for name in ("rope_scaling", "rope_parameters"):  # one factor per pair of a head's dimensions
        if isinstance(fields.get(name), Mapping):
            factors = fields[name].items()
            small[name] = {k: v[: HEAD_DIM // 2] if isinstance(v, (list, tuple)) else v for k, v in factors}
    return small


def tokens_per_tile(base: Path) -> int:
    """Image tokens of a tile of a model directory."""
    return official.num_image_tokens(official.read_config(read_json(base / "config.json"), base))
