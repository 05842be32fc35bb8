"""Opens whatever training left at a path.

=================================  ===================================================================
``iter_N.pth`` (file)              an MMEngine checkpoint: ``{'state_dict': ..., 'meta': ..., ...}``
``iter_N.pth/`` (directory)        a DeepSpeed checkpoint (ZeRO 0 to 3), see ``io/zero.py``
``adapter_config.json`` + weights  a PEFT adapter directory
``model.safetensors``, ...         weights alone
=================================  ===================================================================
"""

from pathlib import Path

from .. import preprocessing
from . import record
from .io import zero
from .io.reader import (
    Checkpoint,
    CheckpointError,
    listing,
    load_pickle,
    open_safetensors,
    open_torch,
    open_weights,
    read_json,
    state_dict,
    weight_files,
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The training checkpoint, PEFT adapter or weights at a path.

    Raises:
        CheckpointError: no such path, or none of these; unreadable files.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            return Checkpoint(path, "weights", open_safetensors(path), [path])
        content = load_pickle(path)
        whole = content if isinstance(content, dict) and "state_dict" in content else {}
        said = {key: whole.get(key) for key in (preprocessing.KEY, record.KEY)}
        return Checkpoint(path, "mmengine", state_dict(content, path), [path], **said)
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if (path / "adapter_config.json").is_file():
        return _open_adapter(path)
    tagged = zero.checkpoint_directory(path)
    if tagged is not None:
        return zero.open_deepspeed(tagged)
    if weight_files(path):
        return Checkpoint(path, "weights", open_weights(path), weight_files(path))
    raise CheckpointError(
        f"{path} is neither a DeepSpeed checkpoint (*_model_states.pt) nor a PEFT adapter "
        f"(adapter_config.json) nor a directory of weights; it holds: {listing(path)}"
    )


def _open_adapter(path: Path) -> Checkpoint:
    config = read_json(path / "adapter_config.json")
    for name, opener in (("adapter_model.safetensors", open_safetensors), ("adapter_model.bin", open_torch)):
        if (path / name).is_file():
            files = [path / "adapter_config.json", path / name]
            lock = read_json(path / preprocessing.FILE, missing={}) or None
            return Checkpoint(path, "peft", opener(path / name), files, {"adapter_config": config}, lock)
    raise CheckpointError(f"{path} has adapter_config.json but no adapter_model.safetensors nor adapter_model.bin")
