"""Writes a trained model as an official directory: the checkpoint's tensors laid over the base, streamed to disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from xtuner_plugins.checkpoints import assemble, trained
from xtuner_plugins.checkpoints.reader import CheckpointError, read_json, weight_files
from xtuner_plugins.checkpoints.writer import (
    check_disk,
    check_target,
    parse_size,
    staged_directory,
    total_bytes,
    write_config,
    write_json,
    write_weights,
)

MANIFEST = "export_manifest.json"
# What a base directory may hold besides weights and config that belongs to the model.
_KEPT_FILES = ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
               "chat_template.jinja", "chat_template.json")  # fmt: skip


def export(
    config_path: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "4GB",
    code: str = "auto",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Exports a training checkpoint as an official InternVL directory.

    Names, shapes, dtypes and config are exactly the base's; adapters are merged in fp32 and cast once. Memory holds one
    block of one tensor at a time. The directory appears under its name whole or not at all.

    Args:
        config_path: the training config (names base and adapters).
        checkpoint: MMEngine ``.pth``, DeepSpeed directory (ZeRO 0 to 3) or PEFT adapter.
        out: directory to write.
        dtype: of all weights; None keeps the base's, tensor by tensor.
        max_shard_size: such as ``4GB``.
        code: ``auto`` ships the base's own model code, ours where it has none; ``ours`` always ships ours.
        force: replace an existing ``out``.
        progress: called with (bytes written now, bytes in all).

    Returns:
        A summary: ``out``, ``num_tensors``, ``num_replaced``, ``num_merged``, ``num_bytes``, ``num_shards``, ``kind``.

    Raises:
        CheckpointError: config, checkpoint and base don't belong together; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    if dtype is not None and dtype not in assemble.DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(assemble.DTYPES)}")
    if code not in ("auto", "ours"):
        raise ValueError(f"code {code!r} is unknown; choose auto or ours")
    shard_bytes = parse_size(max_shard_size)
    plan = trained.lay_over(config_path, checkpoint)
    out = check_target(out, force=force, inputs={"base": plan.base, "checkpoint": checkpoint, "config": config_path})
    check_model(plan)

    tensors = {
        name: (tensor, assemble.DTYPES[dtype] if dtype else plan.base_tensors[name].dtype)
        for name, tensor in plan.merged().items()
    }
    num_bytes = total_bytes(tensors)
    check_disk(out, num_bytes)
    config = read_json(plan.base / "config.json")
    if dtype is not None:
        for fields in (config, config["llm_config"], config["vision_config"]):
            fields["torch_dtype"] = dtype
    changed = plan.changed

    def check(name: str, block: torch.Tensor) -> None:
        if name in changed and block.is_floating_point() and not torch.isfinite(block).all():
            raise CheckpointError(
                f"{checkpoint}: {name} holds NaN or infinity, so training diverged; take an earlier checkpoint"
            )

    sources = [*weight_files(plan.base), plan.base / "config.json", *plan.checkpoint.files, Path(config_path)]
    with staged_directory(out) as stage, ThreadPoolExecutor(1) as pool:
        hashes = pool.submit(hash_files, sources)
        try:
            copy_model_files(plan.base, stage, code)
            advance = (lambda n: progress(n, num_bytes)) if progress else (lambda n: None)
            files = write_weights(stage, tensors, max_shard_size=shard_bytes, advance=advance, check=check)
        except BaseException:
            hashes.cancel()
            raise
        write_json(stage / MANIFEST, manifest(plan, Path(config_path), hashes.result(), dtype))
        write_config(stage, config)
    return {
        "out": str(out),
        "num_tensors": len(tensors),
        "num_replaced": len(plan.replaced),
        "num_merged": len(plan.adapters),
        "num_bytes": num_bytes,
        "num_shards": len(files),
        "kind": plan.checkpoint.kind,
    }


def check_model(plan: trained.TrainedPlan) -> None:
    """Names and shapes of the result against an empty hub model, before anything is written."""
    from xtuner_plugins.checkpoints.loader import compare, empty_model, read_config

    shapes = {name: tensor.shape for name, tensor in plan.without_adapters().items()}
    compare(empty_model(read_config(plan.base)), shapes).raise_if_bad(f"base {plan.base}")


def copy_model_files(base: Path, stage: Path, code: str) -> None:
    """Tokenizer, small configs and model code of the base; our code where it has none or ``ours`` is asked for."""
    own_code = sorted(base.glob("*.py"))
    for name in _KEPT_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, stage / name)
    if own_code and code == "auto":
        for path in own_code:
            shutil.copyfile(path, stage / path.name)
    else:
        assemble.copy_hub_code(stage)


def hash_files(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of each file, hex, by path."""
    result = {}
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(8 * 2**20):
                digest.update(block)
        result[str(path)] = digest.hexdigest()
    return result


def manifest(plan: trained.TrainedPlan, config_path: Path, hashes: dict[str, str], dtype: str | None) -> dict:
    """Where an export came from: base, checkpoint and config with hashes, and what was laid over."""
    import peft
    import transformers

    def files(paths) -> dict[str, str]:
        return {Path(p).name: hashes[str(p)] for p in paths}

    return {
        "base": {"path": str(plan.base), "sha256": files([plan.base / "config.json", *weight_files(plan.base)])},
        "checkpoint": {
            "path": str(plan.checkpoint.path),
            "kind": plan.checkpoint.kind,
            **{k: v for k, v in plan.checkpoint.details.items() if isinstance(v, (int, str))},
            "sha256": files(plan.checkpoint.files),
        },
        "config": {"path": str(config_path), "sha256": hashes[str(config_path)]},
        "dtype": dtype or "as the base",
        "replaced": sorted(plan.replaced),
        "merged": sorted(plan.adapters),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
