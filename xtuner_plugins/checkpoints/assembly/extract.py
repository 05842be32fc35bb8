"""Extracts the vision tower, the projector or the language model of a model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...families import encoder_family
from .. import formats, tokenizer_files
from ..formats import official
from ..io.reader import read_json
from ..io.staging import check_target, staged_directory
from ..io.writer import parse_size, write_json, write_weights

PARTS = ("vision", "projector", "llm")


def extract(
    directory: str | Path, part: str, out: str | Path, *, max_shard_size: str | int = "4GB", force: bool = False
) -> dict:
    """Writes one part as a directory of its own.

    * ``vision``: a standalone InternViT (``embeddings.*``, ``encoder.layers.*``), or the CLIP or SigLIP tower.
    * ``projector``: ``model.safetensors`` with ``mlp1.*`` and a small config; ``--projector`` of the assembly takes it.
    * ``llm``: a causal language model with its tokenizer (the nine image tokens stay in it).

    Args:
        directory: model directory of any format.
        part: one of ``PARTS``.
        out: directory to write.
        max_shard_size: such as ``4GB``.
        force: replace an existing ``out``.

    Returns:
        ``out``, ``num_tensors``, ``num_bytes``.

    Raises:
        CheckpointError: no such model; ``out`` exists; the disk is too full.
        ValueError: an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    view = formats.open_model(directory)
    out = check_target(out, force=force, inputs={"model": directory})
    prefix = {"vision": "vision_model.", "projector": "mlp1.", "llm": "language_model."}[part]
    held = {name: tensor for name, tensor in view.tensors.items() if name.startswith(prefix)}
    if part == "projector":
        kept = ("downsample_ratio", "ps_version", "projector_type", "hidden_size")
        config = {key: view.config[key] for key in kept if key in view.config}
    else:
        held = {name.removeprefix(prefix): tensor for name, tensor in held.items()}
        config = dict(view.config[f"{part}_config"])
    num_bytes = sum(tensor.nbytes for tensor in held.values())
    with staged_directory(out, config, num_bytes) as stage:
        if part == "llm":
            for name in tokenizer_files.FILES:
                if (view.directory / name).is_file():
                    shutil.copyfile(view.directory / name, stage / name)
            stop = {"eos_token_id": config.get("eos_token_id")}
            generation = read_json(view.directory / "generation_config.json", missing=stop)
            write_json(stage / "generation_config.json", generation)
        if (
            part == "vision" and not encoder_family(config).is_intern_vit
        ):  # with ImageNet's mean and std: the tower's own are folded in
            write_json(stage / "preprocessor_config.json", official.preprocessor_config(config["image_size"]))
        write_weights(stage, held, max_shard_size=parse_size(max_shard_size))
    return {"out": str(out), "num_tensors": len(held), "num_bytes": num_bytes}
