"""Verifies an export: a clean process opens it and must answer as the live trained model does.

Four cases: text only, one tile, many tiles with a thumbnail, two images. Compared are the tiles (bit-equal, though made
by independent code), the logits of the prompt and the greedy answer. The live model computes in fp32 with unmerged
adapters, so merging and casting are tested too.

The Python files of an official directory run only if they are this project's own, byte for byte, or the caller trusts
them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import trained
from ..checkpoints.formats import remote_code
from ..checkpoints.formats.draft import ships_own_code
from ..checkpoints.io.reader import CheckpointError, open_weights

PROBE = Path(__file__).with_name("verify_probe.py")
# fp32: the same sums in another order (merged W + BA against Wx + BAx), relative to the largest logit.
TOLERANCE_FP32 = 1e-5
# Cast weights: bf16 rounds each by up to 2^-9 of itself; independent errors over a few dozen layers stay within 2^-5.
TOLERANCE_CAST = 2.0**-5
MAX_NEW_TOKENS = 16
TIMEOUT_S = 3600


@dataclass
class CaseResult:
    """One case: the largest difference of logits, the largest logit, and whether the answers agree."""

    name: str
    gap: float
    scale: float
    same_answer: bool
    note: str = ""


@dataclass
class VerifyReport:
    """What was compared; every case is within the tolerance."""

    cases: list[CaseResult]
    tolerance: float

    def __str__(self) -> str:
        lines = [f"verified in a clean process (tolerance {self.tolerance:.1e} of the largest logit):"]
        for case in self.cases:
            relative = case.gap / case.scale
            answer = "same answer" if case.same_answer else case.note
            lines.append(f"  {case.name:<12} pixels equal, logits within {case.gap:.1e} ({relative:.1e}), {answer}")
        return "\n".join(lines)


def check_code_before(config, format: str | None, code: str) -> None:
    """Refuses, before anything is written, an export whose code ``verify`` would not trust.

    Args:
        config: The training config, path or ``mmengine.Config``.
        format: As for ``export``.
        code: As for ``export``.

    Raises:
        CheckpointError: The base's own code would be shipped, and it isn't ours.
    """
    base = Path(trained.read_training_config(config).model.base)
    if format in (None, "official") and code == "auto" and base.is_dir() and ships_own_code(base):
        remote_code.check_trusted(
            base,
            f"it comes with the base {base}: read it and pass --trust-remote-code, or ship our code with --code ours",
        )


def verify(
    config,
    checkpoint: str | Path,
    export: str | Path,
    *,
    model=None,
    trust_remote_code: bool = False,
    template: str | None = None,
    max_tiles: int | None = None,
) -> VerifyReport:
    """Compares an export with the model that was trained.

    Args:
        config: The training config, path or ``mmengine.Config``.
        checkpoint: The training checkpoint.
        export: The directory to verify, of any format.
        model: The trained model, a hub ``InternVLChatModel``; None loads it from config and checkpoint, in fp32 with
            unmerged adapters.
        template: Conversation template, for a checkpoint that was trained with several.
        max_tiles: Tile limit, likewise.
        trust_remote_code: Run the export's Python files even if they aren't this project's own.

    Raises:
        CheckpointError: The export has other code than ours, doesn't open, or pixels, logits or answers differ.
    """
    from ..checkpoints import loader
    from ..datasets.base import tiling_of

    if not trust_remote_code:
        remote_code.check_trusted(export, f"read it in {export} and pass --trust-remote-code")
    plan = trained.lay_over(config, checkpoint).settle(template, max_tiles)
    exact = all(t.dtype == torch.float32 for t in open_weights(export).values())
    tolerance = TOLERANCE_FP32 if exact else TOLERANCE_CAST
    if model is None:
        choice = dict(template=template, max_tiles=max_tiles)
        model = loader.load_trained(config, checkpoint, dtype=torch.float32, merge_lora=False, **choice)
    tokenizer = loader.load_tokenizer(plan.view.directory)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        work = Path(folder)
        tiling = tiling_of(loader.config_from_fields(plan.view.config, plan.view.directory), {})
        cases, expected = _live(model, tokenizer, tiling, work)
        del model
        _run_probe(Path(export), work, cases)
        found = torch.load(work / "probe.pt", weights_only=True)
        _compare_preprocessing(plan.view.config, tiling, found.pop("preprocessing"))
        results = [
            _compare(case["name"], expected[case["name"]], found[case["name"]], tolerance) for case in cases["cases"]
        ]
    return VerifyReport(results, tolerance)


def _images(work: Path, size: int) -> dict[str, str]:
    """Writes a small square, a wide and a tall image with structure and noise; returns their file names."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    names = {}
    for name, (width, height) in {
        "square": (size, size),
        "wide": (3 * size, 2 * size),
        "tall": (size, 2 * size + 7),
    }.items():
        ramp = torch.linspace(0, 200, width).repeat(height, 1)[..., None].repeat(1, 1, 3)
        pixels = (ramp + torch.rand(height, width, 3, generator=generator) * 55).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(work / f"{name}.png")
        names[name] = f"{name}.png"
    return names


@torch.no_grad()
def _live(model, tokenizer, tiling, work: Path) -> tuple[dict, dict]:
    """Runs the cases on the live model; returns the probe's task and the expected results."""
    from ..datasets.images.media import load_image
    from ..hub.conversation import get_conv_template
    from .session import normalize

    size = tiling.tile_size
    names = _images(work, size)
    stop = tokenizer.convert_tokens_to_ids(get_conv_template(model.template).stop_token)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    questions = [
        ("text only", "Name three colors.", []),
        ("one tile", "<image>\nWhat is this?", ["square"]),
        ("many tiles", "<image>\nWhich number is it?", ["wide"]),
        ("two images", "First <image>, second <image>: which is larger?", ["wide", "tall"]),
    ]
    cases, expected = [], {}
    for name, question, images in questions:
        tiles = [normalize(tiling(load_image(work / names[p]))) for p in images]
        pixels = torch.cat(tiles) if tiles else None
        prompt = model.build_prompt(question, [len(t) for t in tiles])
        ids = tokenizer(prompt).input_ids
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if pixels is None:
            logits = model.language_model(**inputs).logits
        else:
            flags = torch.ones(len(pixels), 1, dtype=torch.long)
            logits = model(pixel_values=pixels, image_flags=flags, **inputs).logits
        options = dict(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=stop)
        options |= dict(output_scores=True, return_dict_in_generate=True)
        made = model.generate(pixel_values=pixels, **inputs, **options)
        expected[name] = {
            "pixels": pixels,
            "logits": logits[0],
            "answer": made.sequences[0].tolist(),
            "scores": torch.stack(made.scores)[:, 0],
        }
        cases.append(
            {
                "name": name,
                "images": [names[p] for p in images],
                "prompt": prompt,
                "ids": ids,
                "eos": stop,
                "question": question,
                "num_tiles": [len(t) for t in tiles],
                "max_new_tokens": MAX_NEW_TOKENS,
            }
        )
    return {"cases": cases}, expected


def _compare_preprocessing(config: dict, tiling, found: dict) -> None:
    """Compares tile limits and template in the export's own files with the training's.

    Raises:
        CheckpointError: They differ; names both.
    """
    trained_with = {
        "min_tiles": tiling.min_tiles,
        "max_tiles": tiling.max_tiles,
        "tile_size": tiling.tile_size,
        "use_thumbnail": tiling.use_thumbnail or tiling.max_tiles == 1,
        "template": config["template"],
    }
    if found["max_tiles"] == 1:  # then there is never a thumbnail
        found = {**found, "use_thumbnail": True}
    wrong = [
        f"{key}={found[key]} (trained: {value})"
        for key, value in trained_with.items()
        if found[key] not in (value, None)
    ]
    if wrong:
        raise CheckpointError(f"verification failed: the export says {', '.join(wrong)}")


def _run_probe(export: Path, work: Path, task: dict) -> None:
    (work / "cases.json").write_text(json.dumps(task), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(work / "modules"), TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(
        [sys.executable, "-I", str(PROBE), str(export.resolve()), str(work)],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise CheckpointError(
            f"verification failed: a clean process can't use {export}: {lines[-1] if lines else 'no message'}"
        )


def _compare(name: str, live: dict, found: dict, tolerance: float) -> CaseResult:
    if live["pixels"] is not None and not torch.equal(live["pixels"], found["pixels"]):
        raise CheckpointError(f"verification failed, case {name}: the export's tiles differ from the trained model's")
    columns = min(live["logits"].shape[-1], found["logits"].shape[-1])  # hf and llava add rows at the end
    gap = (live["logits"][:, :columns] - found["logits"][:, :columns]).abs().max().item()
    scale = max(1.0, live["logits"].abs().max().item())
    if not gap <= tolerance * scale:  # also when it is NaN
        raise CheckpointError(
            f"verification failed, case {name}: logits differ by {gap:.3g}, {gap / scale:.3g} of the largest; "
            f"{tolerance:.3g} is tolerated"
        )
    mine, theirs = live["answer"], found["answer"]
    if mine == theirs:
        return CaseResult(name, gap, scale, True)
    # Rounding may break a tie; a wider margin means another model.
    at = next((k for k, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    if tolerance > TOLERANCE_FP32 and at < min(len(mine), len(theirs)):
        scores = live["scores"][at]
        margin = (scores[mine[at]] - scores[theirs[at]]).item()
        if margin <= 2 * tolerance * scale:
            note = f"answers part at token {at}, where the trained model's two choices are {margin:.1e} apart"
            return CaseResult(name, gap, scale, False, note)
    raise CheckpointError(f"verification failed, case {name}: greedy answers part at token {at}: {mine} and {theirs}")
