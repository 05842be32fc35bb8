"""A config with which VLMEvalKit evaluates an export, for benchmarks whose answers a judge reads.

VLMEvalKit's `run.py --config FILE` takes JSON: `model` holds, under a name, a class of `vlmeval.vlm` and its arguments;
`data` the same for benchmarks and classes of `vlmeval.dataset`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

ARCHITECTURE = "InternVLChatModel"  # of an official directory, which the wrapper loads with its own code
WRAPPER = "InternVLChat"
VERSION = "V2.0"  # of the wrapper's ways to ask: the one for tiles, several images and InternVL 2 to 3
JUDGED = ("HallusionBench", "LLaVABench", "MMMU_DEV_VAL", "MMVet", "MathVista_MINI")
# Benchmark: class in vlmeval.dataset.
DATA_CLASSES: dict[str, str] = {
    **dict.fromkeys(("MMBench_DEV_EN", "MMBench_DEV_CN", "MMBench_DEV_EN_V11", "CCBench"), "ImageMCQDataset"),
    **dict.fromkeys(("MMStar", "AI2D_TEST", "AI2D_TEST_NO_MASK", "ScienceQA_TEST"), "ImageMCQDataset"),
    **dict.fromkeys(("SEEDBench_IMG", "RealWorldQA"), "ImageMCQDataset"),
    **dict.fromkeys(("MME", "POPE", "HallusionBench"), "ImageYORNDataset"),
    **dict.fromkeys(("TextVQA_VAL", "DocVQA_VAL", "ChartQA_TEST"), "ImageVQADataset"),
    "OCRBench": "OCRBench",
    "MMMU_DEV_VAL": "MMMUDataset",
    "MMVet": "MMVet",
    "MathVista_MINI": "MathVista",
    "LLaVABench": "LLaVABench",
}


def make_config(
    export: str | Path,
    name: str | None = None,
    data: Sequence[str] = JUDGED,
    *,
    max_new_tokens: int | None = None,
    mpo_prompt: bool = False,
    lmdeploy: bool = False,
) -> dict:
    """The config for an export in the official format.

    Args:
        export: The directory.
        name: What VLMEvalKit calls the model, in the names of its files too; None takes the directory's name.
        data: Keys of `DATA_CLASSES`.
        max_new_tokens: Longest answer; None leaves it to the wrapper (4096).
        mpo_prompt: Ask for reasoning as InternVL's MPO models are asked (with USE_COT=1 for all benchmarks).
        lmdeploy: Answer through lmdeploy instead of transformers.

    Raises:
        ValueError: The directory is no official export, or a benchmark is unknown.
    """
    directory = Path(export)
    _check_export(directory)
    unknown = [one for one in data if one not in DATA_CLASSES]
    if unknown or not data:
        close = difflib.get_close_matches(unknown[0], DATA_CLASSES, n=1, cutoff=0.4) if unknown else []
        hint = f"did you mean {close[0]}? " if close else ""
        problem = f"benchmark {unknown[0]!r} is unknown" if unknown else "no benchmark is named"
        raise ValueError(f"{problem}; {hint}known are {', '.join(DATA_CLASSES)}")
    arguments: dict = {"class": WRAPPER, "model_path": os.path.abspath(directory), "version": VERSION}
    if max_new_tokens is not None:
        arguments["max_new_tokens"] = max_new_tokens
    if mpo_prompt:
        arguments["use_mpo_prompt"] = True
    if lmdeploy:
        arguments["use_lmdeploy"] = True
    return {
        "model": {name or directory.resolve().name: arguments},
        "data": {one: {"class": DATA_CLASSES[one], "dataset": one} for one in data},
    }


def _check_export(directory: Path) -> None:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no config.json; name an export")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export again") from None
    found = fields.get("architectures") if isinstance(fields, dict) else None
    if found != [ARCHITECTURE]:
        raise ValueError(
            f"{directory} holds {found}, and VLMEvalKit's wrapper loads {ARCHITECTURE}; "
            "export in the official format (tools/convert_to_official.py without --format)"
        )


def write_config(config: dict, path: str | Path, *, force: bool = False) -> None:
    """Write a config as JSON.

    Raises:
        ValueError: The file is there and `force` isn't given.
    """
    path = Path(path)
    if path.exists() and not force:
        raise ValueError(f"{path} is there already; give another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
