"""Writes trained LoRA tensors as PEFT adapter directories, one per part that has some.

::

    out/language_model/     adapter_config.json, adapter_model.safetensors, for PeftModel.from_pretrained
    out/vision_model/       the same for the vision tower
    out/replaced.safetensors    whole tensors that trained too (the projector), official names
    out/record.json         the run's record: `open_checkpoint` reads OUT as it reads the checkpoint
    out/preprocessing.json  how it prepared images and text
    out/export_manifest.json    SHA-256 of these files and of the base, which PEFT has no field for
"""

from __future__ import annotations

from pathlib import Path

from ..weights import manifest, merge, preprocessing, record
from ..weights.checkpoint import ADAPTER, REPLACED
from ..weights.lazy import LazyTensor, cast
from ..weights.reading import CheckpointError
from ..weights.staging import check_target, staged_directory
from ..weights.writer import resolve_dtype, write_json, write_single
from . import trained


def export_adapter(
    config_path: str | Path, checkpoint: str | Path, out: str | Path, *, dtype: str | None = None, force: bool = False
) -> dict:
    """Writes the adapters of a training checkpoint for PEFT.

    Args:
        config_path: the training config; None takes everything from the checkpoint's record.
        checkpoint: MMEngine ``.pth`` or DeepSpeed directory.
        out: directory to write.
        dtype: of the adapter's weights; None keeps the stored one (fp32).
        force: replace an existing ``out``.

    Returns:
        ``out``, ``parts``, ``num_tensors``.

    Raises:
        CheckpointError: the checkpoint has no adapter, or doesn't belong to the config.
    """
    wanted = resolve_dtype(dtype)
    plan = trained.lay_over(config_path, checkpoint)
    if not plan.adapters and not plan.lora_configs:
        raise CheckpointError(
            f"{checkpoint} holds no LoRA tensors, so there is no adapter to write; export without --format peft"
        )
    without = [layer for layer in plan.token_rows if layer.partition(".")[0] not in plan.lora_configs]
    if without:
        raise CheckpointError(
            f"{checkpoint} holds trained rows of {without[0]} without LoRA beside them, which PEFT can't load; export "
            "without --format peft"
        )
    base = plan.view.directory
    out = check_target(
        out, force=force, inputs={"base": base, "checkpoint": checkpoint, "config": trained.config_file(config_path)}
    )
    parts: dict[str, dict[str, LazyTensor]] = {}
    for layer, tensors in plan.adapters.items():
        part, _, inner = layer.partition(".")
        for kind, tensor in tensors.items():
            parts.setdefault(part, {})[f"base_model.model.{inner}.{kind}"] = tensor
    for layer, (tensor, _) in plan.token_rows.items():
        part, _, inner = layer.partition(".")
        parts.setdefault(part, {})[f"base_model.model.{inner}.{merge.TOKEN_ROWS}"] = tensor
    config = {"base": str(base), "adapters": sorted(parts), "replaced": sorted(plan.replaced)}
    num_bytes = sum(tensor.nbytes for held in [*parts.values(), plan.replaced] for tensor in held.values())
    with staged_directory(out, config, num_bytes) as stage:
        for part, tensors in parts.items():
            (stage / part).mkdir()
            typed = {name: cast(tensor, wanted) for name, tensor in tensors.items()}
            write_single(stage / part / ADAPTER, typed)
            layers = sorted({layer.partition(".")[2] for layer in plan.adapters if layer.startswith(part + ".")})
            write_json(stage / part / "adapter_config.json", _peft_config(plan, part, layers))
        write_json(stage / record.FILE, plan.record)
        if plan.preprocessing is not None:
            write_json(stage / preprocessing.FILE, plan.preprocessing)
        if plan.replaced:
            write_single(stage / REPLACED, {n: cast(t, wanted) for n, t in plan.replaced.items()})
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        digests = {str(path.relative_to(stage)): manifest.digest(path) for path in files}
        write_json(stage / manifest.FILE, {"base": plan.record["base"], "files": digests})
    num_tensors = sum(len(t) for t in parts.values()) + len(plan.replaced)
    return {"out": str(out), "parts": sorted(parts), "num_tensors": num_tensors}


def _peft_config(plan: trained.TrainedPlan, part: str, layers: list[str]) -> dict:
    config = merge.full_config(plan.lora_configs[part])
    config.target_modules, config.base_model_name_or_path = layers, str(plan.view.directory)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = None  # whole tensors are in REPLACED
    rows = {layer: indices for layer, (_, indices) in plan.token_rows.items() if layer.startswith(part + ".")}
    config.trainable_token_indices = {layer.partition(".")[2]: indices for layer, indices in rows.items()} or None
    config.inference_mode = config.init_lora_weights = True
    fields = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return {**fields, "peft_type": "LORA", "task_type": None}
