"""Opens whatever training left at a path.

=================================  ===================================================================
``iter_N.pth`` (file)              an MMEngine checkpoint: ``{'state_dict': ..., 'meta': ..., ...}``
``iter_N.pth/`` (directory)        a DeepSpeed checkpoint (ZeRO 0 to 3), see ``zero.py``
``record.json`` + parts            what ``export/adapters.py`` writes: a PEFT directory per part, and the rest
``model.safetensors``, ...         weights alone
=================================  ===================================================================
"""

from pathlib import Path

from . import manifest, preprocessing, reading, record, zero
from .errors import CheckpointError, refusing
from .reading import Checkpoint, open_safetensors, read_json

ADAPTER, REPLACED = "adapter_model.safetensors", "replaced.safetensors"


@refusing
def open_checkpoint(path: str | Path) -> Checkpoint:
    """The training checkpoint, exported adapter or weights at a path; `CheckpointError` where there is none of them."""
    path = Path(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            return Checkpoint(path, "weights", open_safetensors(path), [path])
        content = reading.load_pickle(path)
        run = content if isinstance(content, dict) and "state_dict" in content else {}
        return Checkpoint(path, "mmengine", reading.state_dict(path, content), [path], run)
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if (path / record.FILE).is_file():
        return _open_adapters(path)
    if (path / "adapter_config.json").is_file():
        told = "Any other is merged by PEFT: PeftModel.from_pretrained(model, path).merge_and_unload()"
        raise CheckpointError(f"{path} is a PEFT adapter; give the directory above it if this project wrote it. {told}")
    if tagged := zero.checkpoint_directory(path):
        return zero.open_deepspeed(tagged)
    if files := reading.weight_files(path):
        return Checkpoint(path, "weights", reading.open_weights(path), files)
    kinds = f"no DeepSpeed checkpoint (*_model_states.pt), exported adapter ({record.FILE}) or directory of weights"
    raise CheckpointError(f"{path} is {kinds}; it holds: {reading.listing(path)}")


def _open_adapters(path: Path) -> Checkpoint:
    """An adapter of ours under the names of a training checkpoint: those of each part, and the tensors that replace."""
    manifest.check(path, weights=False)
    tensors, files = {}, [*sorted(path.glob(f"*/{ADAPTER}")), *path.glob(REPLACED)]
    for file in files:
        part = "" if file.name == REPLACED else f"{file.parent.name}."
        tensors |= {part + key.removeprefix("base_model.model."): each for key, each in open_safetensors(file).items()}
    run = {record.KEY: read_json(path / record.FILE), preprocessing.KEY: read_json(path / preprocessing.FILE, {})}
    return Checkpoint(path, "adapter", tensors, [path / record.FILE, *files], run)
