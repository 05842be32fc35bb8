"""Opens whatever training left at a path.

=================================  ===================================================================
``iter_N.pth`` (file)              an MMEngine checkpoint: ``{'state_dict': ..., 'meta': ..., ...}``
``iter_N.pth/`` (directory)        a DeepSpeed checkpoint (ZeRO 0 to 3), see ``zero.py``
``record.json`` + parts            what ``export/adapters.py`` writes: a PEFT directory per part, and the rest
``model.safetensors``, ...         weights alone
=================================  ===================================================================
"""

from pathlib import Path

from . import manifest, preprocessing, record, zero
from .reading import (
    Checkpoint,
    CheckpointError,
    listing,
    load_pickle,
    open_safetensors,
    open_weights,
    read_json,
    state_dict,
    weight_files,
)

ADAPTER, REPLACED = "adapter_model.safetensors", "replaced.safetensors"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The training checkpoint, exported adapter or weights at a path; `CheckpointError` where there is none of them."""
    path = Path(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            return Checkpoint(path, "weights", open_safetensors(path), [path])
        content = load_pickle(path)
        tensors = state_dict(path, content)
        return Checkpoint.of_run(path, "mmengine", tensors, [path], content if "state_dict" in content else {})
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if (path / record.FILE).is_file():
        return _open_adapters(path)
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} is a PEFT adapter; give the directory above it if this project wrote it. Any other is merged by "
            "PEFT: PeftModel.from_pretrained(model, path).merge_and_unload()"
        )
    if tagged := zero.checkpoint_directory(path):
        return zero.open_deepspeed(tagged)
    if weight_files(path):
        return Checkpoint(path, "weights", open_weights(path), weight_files(path))
    kinds = f"no DeepSpeed checkpoint (*_model_states.pt), exported adapter ({record.FILE}) or directory of weights"
    raise CheckpointError(f"{path} is {kinds}; it holds: {listing(path)}")


def _open_adapters(path: Path) -> Checkpoint:
    """An adapter of ours under the names of a training checkpoint: those of each part, and the tensors that replace."""
    manifest.check(path, weights=False)
    parts, whole = sorted(path.glob(f"*/{ADAPTER}")), list(path.glob(REPLACED))
    tensors = {
        f"{file.parent.name}.{name.removeprefix('base_model.model.')}": tensor
        for file in parts
        for name, tensor in open_safetensors(file).items()
    }
    for file in whole:
        tensors |= open_safetensors(file)
    lock, files = read_json(path / preprocessing.FILE, missing={}) or None, [path / record.FILE, *parts, *whole]
    return Checkpoint(path, "adapter", tensors, files, lock, read_json(path / record.FILE))
