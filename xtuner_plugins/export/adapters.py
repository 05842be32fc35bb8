"""Writes trained LoRA tensors as PEFT adapter directories, one per part that has some.

::

    out/language_model/     adapter_config.json, adapter_model.safetensors, for PeftModel.from_pretrained
    out/vision_model/       the same for the vision tower
    out/replaced.safetensors    whole tensors that trained too (the projector), official names
    out/record.json         the run's record: `open_checkpoint` reads OUT as it reads the checkpoint
    out/preprocessing.json  how it prepared images and text
    out/export_manifest.json    SHA-256 of these files and of the base, which PEFT has no field for
"""

from pathlib import Path

from ..dtypes import resolve_dtype
from ..weights import manifest, preprocessing, record
from ..weights.checkpoint import ADAPTER, REPLACED
from ..weights.lazy import cast
from ..weights.reading import CheckpointError
from ..weights.staging import check_target, staged_directory
from ..weights.writer import write_json, write_single
from . import trained


def export_adapter(
    config_path: str | Path, checkpoint: str | Path, out: str | Path, *, dtype: str | None = None, force: bool = False
) -> dict:
    """Writes the adapters of a training checkpoint for PEFT.

    Args:
        config_path: as for `lay_over`, like ``checkpoint``.
        checkpoint: likewise.
        out: directory to write.
        dtype: of the adapter's weights; None keeps the stored one (fp32).
        force: replace an existing ``out``.

    Returns:
        ``out``, ``parts``, ``num_tensors``.

    Raises:
        CheckpointError: the checkpoint has no adapter, or doesn't belong to the config.
    """
    wanted = dtype and resolve_dtype(dtype)
    plan = trained.lay_over(config_path, checkpoint)
    if not plan.lora_configs:
        raise CheckpointError(f"{checkpoint} holds no LoRA tensors for an adapter; export without --format peft")
    base, file = plan.view.directory, config_path and getattr(config_path, "filename", config_path)
    out = check_target(out, force=force, inputs={"base": base, "checkpoint": checkpoint, "config": file})
    parts, held = sorted(plan.lora_configs), plan.live_tensors()
    files = {f"{part}/{ADAPTER}": trained.inside(held, part) for part in parts}
    files = {file: {f"base_model.model.{name}": each for name, each in own.items()} for file, own in files.items()}
    files |= {REPLACED: plan.replaced} if plan.replaced else {}
    tensors = [tensor for each in files.values() for tensor in each.values()]
    config = {"base": str(base), "adapters": parts, "replaced": sorted(plan.replaced)}
    with staged_directory(out, config, sum(tensor.nbytes for tensor in tensors)) as stage:
        for part in parts:
            (stage / part).mkdir()
            own = {"base_model_name_or_path": str(base), "inference_mode": True, "init_lora_weights": True}
            fields = plan.peft_config(part, **own, task_type=None).to_dict()
            fields = {key: sorted(each) if isinstance(each, set) else each for key, each in fields.items()}
            write_json(stage / part / "adapter_config.json", fields)
        for file, each in files.items():
            write_single(stage / file, {name: cast(tensor, wanted) for name, tensor in each.items()})
        write_json(stage / record.FILE, plan.record)
        if plan.preprocessing is not None:
            write_json(stage / preprocessing.FILE, plan.preprocessing)
        write_json(stage / manifest.FILE, {"base": plan.record["base"], "files": manifest.digests(stage)})
    return {"out": str(out), "parts": parts, "num_tensors": len(tensors)}
