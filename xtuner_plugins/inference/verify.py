"""Verifies an export or a conversion: its tensors, its files, and how it answers where this project is out of reach.

In this order, each against base and checkpoint (or the source of a conversion), not against what the writer left:

1. SHA-256 of all files, as the manifest says;
2. every small file, byte by byte, against one that is made again;
3. every tensor: bit-equal, or base + scale x B A within one rounding. Merged numbers are computed here by other lines
   than those that wrote the export: ``W + s B A`` in float64 and DoRA's row norms;
4. logits along the trained model's own answers: live adapters against merged weights, both in float32;
5. the same in a clean process that opens the export with transformers (`verify_probe`): prompts, a processor's
   tiles and stop tokens as in training, logits of the merged weights.

What casting to the export's dtype changes in the answers is a figure of its own, no failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import linear

from ..datasets.base import tiling_of
from ..datasets.images.media import load_image
from ..export import card, trained
from ..export.export import Job
from ..export.trained import TrainedPlan
from ..hub.conversation import get_conv_template
from ..weights import loader, manifest
from ..weights.lazy import LazyTensor, cast
from ..weights.model_view import keys_of
from ..weights.reading import CheckpointError, open_weights, read_json
from ..weights.writer import json_text
from .session import normalize

PROBE = Path(__file__).with_name("verify_probe.py")
TOLERANCE = 1e-5  # of the largest logit
# Two sums of the same numbers in other orders are two draws of one error, so one may be a few times the other.
NOISES = 4
# The writer merges in float32: sums of a rank's products are off by a few 2^-24 of a row's largest number.
_FLOAT32_SUMS = 2.0**-20
MAX_NEW_TOKENS = 16
# A processor resizes with other code: at most two of 255 levels, of the smallest standard deviation.
PIXELS = 2 / 255 / 0.224
QUESTIONS = (
    ("text only", "Name three colors.", []),
    ("one tile", "<image>\nWhat is this?", ["square"]),
    ("many tiles", "<image>\nWhich number is it?", ["wide"]),
    ("two images", "<image>\n<image>\nWhich is larger?", ["wide", "tall"]),
)


@dataclass
class Case:
    """One question.

    Attributes:
        name: what it tests.
        task: what the clean process is asked; lists and strings.
        pixels: tiles [T, 3, S, S] as in training; None for none.
        logits: by model (``live``, ``merged``, ``cast``): [N, V], at the N tokens of the live model's answer.
        noise: largest difference of the live logits when sums are taken in another order.
    """

    name: str
    task: dict
    pixels: torch.Tensor | None
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    noise: float = 0.0

    @property
    def exact(self) -> torch.Tensor:
        """Logits of the merged weights; those of the live model where there is nothing to merge."""
        return self.logits.get("merged", self.logits["live"])

    def allowed(self) -> float:
        """The largest difference of logits that is no difference of models."""
        return max(TOLERANCE * max(1.0, self.logits["live"].abs().max().item()), NOISES * self.noise)

    def gap(self, want: torch.Tensor, found: torch.Tensor, what: str) -> float:
        """Largest difference of logits; ``CheckpointError`` where it is more than allowed."""
        columns = min(want.shape[1], found.shape[1])  # hf and llava add rows at the end
        gap = (want[:, :columns] - found[:, :columns]).abs().max().item()
        if not gap <= self.allowed():  # also when it is NaN
            raise CheckpointError(f"case {self.name}: {what} by {gap:.3g}, {self.allowed():.3g} is allowed")
        return gap


class Report(NamedTuple):
    """What was compared and is right: tensors that differ from the base's, and their number, by part; and the lines."""

    changed: dict[str, tuple[int, int]]
    text: str


def verify(job: Job, out: str | Path) -> Report:
    """Compares a directory with what an export or a conversion had to write.

    Args:
        job: from `export.prepare` or `export.prepare_conversion`.
        out: the directory.

    Raises:
        CheckpointError: files, tensors, tiles, prompts, stop tokens or logits differ, or the export doesn't open.
    """
    out = Path(out)
    try:
        for path in (out, *(path for role, (path, _) in job.sources.items() if role != "base" and path.is_dir())):
            manifest.check(path, weights=True)  # of a base the record of the run holds the hashes
        compare_files(job, out)
        changed = compare_tensors(job, out)
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            cases = ask(job, Path(folder))
            merged = [case.gap(case.logits["live"], case.exact, "merging moves logits") for case in cases]
            opened = [] if job.draft.foreign_code else compare_opened(cases, out, Path(folder))
    except CheckpointError as error:
        raise CheckpointError(f"verification failed: {error}; {out} stands, but don't use it") from None
    except (OSError, RuntimeError, ValueError) as error:  # such as a full disk, or too little memory
        raise CheckpointError(f"verification broke off: {error}; {out} stands, but is not verified") from error
    except BaseException:  # such as Ctrl-C
        print(f"\n{out} stands, but is not verified", file=sys.stderr)
        raise
    parts = ", ".join(f"{part} {count} of {of}" for part, (count, of) in changed.items())
    lines = [f"verified: {out} stands", f"  tensors that differ from the base: {parts}"]
    for case, one, other in zip(cases, merged, opened, strict=False):
        lines.append(f"  {case.name:<11} logits: merged {one:.1e}, opened {other:.1e} (at most {case.allowed():.1e})")
    if not opened:
        lines.append("note: the base's own model code was not run, so only files and tensors are proven")
    return Report(changed, "\n".join([*lines, *cost_of_cast(cases, peft=bool(job.plan.adapters))]))


def compare_files(job: Job, out: Path) -> None:
    """Compares all files but weights with those of the job, made again.

    Raises:
        CheckpointError: names the files that differ, lack, or are too many.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        job.write_small(Path(folder))
        want = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    held = {name: path.read_bytes() for name, path in files.items() if path.suffix != ".safetensors"}
    digests = {name: found for name, found in manifest.digests(out).items() if name not in (manifest.FILE, card.FILE)}
    told = {"config.json": job.draft.config, manifest.FILE: {**job.manifest(), "files": dict(sorted(digests.items()))}}
    if (index := "model.safetensors.index.json") in held:
        size = sum(tensor.nbytes for tensor in open_weights(out).values())
        told[index] = {"metadata": {"total_size": size}, "weight_map": read_json(files[index]).get("weight_map")}
    want |= {name: json_text(content).encode() for name, content in told.items()}
    if wrong := sorted(name for name in want.keys() | held.keys() if want.get(name) != held.get(name)):
        raise CheckpointError(f"{', '.join(wrong[:4])}: not what the export writes")


def compare_tensors(job: Job, export: Path) -> dict[str, tuple[int, int]]:
    """By part (``vision_model``, ``mlp1``, ...), how many tensors of an export differ from the base's, and of how many.

    Raises:
        CheckpointError: a tensor lacks, is unknown, or has another dtype, shape or numbers; a part that was trained is
            the base's.
    """
    plan, keys = job.plan, keys_of(job.draft.format, read_json(export / "config.json"))
    drafted, found = job.draft.tensors, open_weights(export)
    if wrong := sorted(drafted.keys() ^ found.keys()):
        raise CheckpointError(f"the weights lack or add {len(wrong)} tensors: {', '.join(wrong[:3])}")
    for name, tensor in found.items():
        if (tensor.dtype, tensor.shape) != (drafted[name].dtype, drafted[name].shape):
            raise CheckpointError(f"{name} is {tensor}, but {drafted[name]} was due")
    changed: dict[str, list[bool]] = {}
    for name, tensor in keys.to_ours(found).items():
        changed.setdefault(name.partition(".")[0], []).append(_differs_from_base(plan, name, tensor))
    parts = {name.partition(".")[0] for name in (*plan.replaced, *plan.adapters, *plan.token_rows)}
    if same := sorted(part for part in parts if not any(changed[part])):
        why = "the learning rate was 0, or the changes are too small for its dtype (--dtype float32 keeps them)"
        raise CheckpointError(f"no tensor of {', '.join(same)} differs from the base, though it was trained: {why}")
    return {part: (sum(each), len(each)) for part, each in changed.items()}


def _differs_from_base(plan: TrainedPlan, name: str, found: LazyTensor) -> bool:
    """Compares one tensor; returns whether it differs from the base's. Errors as for ``compare_tensors``."""
    base, (layer, _, leaf) = plan.view.tensors[name], name.rpartition(".")
    longer, differs = found.shape > base.shape, False  # by rows of tokens that only a processor needs
    if longer and found.read(base.shape[0]).any():
        raise CheckpointError(f"{name}: rows from {base.shape[0]} on are of tokens that were not trained, but aren't 0")
    for start, stop in (base if longer else found).spans():
        block, own = found.read(start, stop), base.read(start, stop)
        want, where = plan.replaced.get(name, base).read(start, stop), f"{name}, rows {start} to {stop}"
        if leaf == "weight" and layer in plan.adapters:
            _check_merged(block, _merged(plan, layer, want, start, stop), where)
        else:
            if leaf == "weight" and layer in plan.token_rows:
                want = _with_rows(want, *plan.token_rows[layer], start)
            if not _equal(block, want):
                raise CheckpointError(f"{where}: other numbers than were trained")
        differs |= not _equal(block, own)
    return differs


def _equal(block: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether a block is another one, bit by bit, cast to its dtype."""
    return torch.equal(block.flatten().view(torch.uint8), want.to(block.dtype).flatten().view(torch.uint8))


def _with_rows(block: torch.Tensor, trained: LazyTensor, indices: list[int], start: int) -> torch.Tensor:
    """A block of a matrix, from row ``start`` on, with its trained rows."""
    block = block.to(torch.promote_types(block.dtype, trained.dtype))
    for row, index in zip(trained.read(), indices, strict=True):
        if start <= index < start + len(block):
            block[index - start] = row
    return block


def _merged(plan: TrainedPlan, layer: str, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows ``[start, stop)`` of a layer's merged weight in float64, from those of the base."""
    parts, scale = plan.adapters[layer], plan.lora_configs[layer.partition(".")[0]].scale
    b, a = parts["lora_B.weight"].read(start, stop).double(), parts["lora_A.weight"].read().double()
    merged = base.double() + scale * b @ a
    if magnitude := parts.get("lora_magnitude_vector.weight"):
        merged *= magnitude.read(start, stop).double()[:, None] / merged.norm(dim=1, keepdim=True)
    return merged


def _check_merged(found: torch.Tensor, want: torch.Tensor, where: str) -> None:
    """Raises unless ``found`` is the float64 ``want`` within one rounding of its dtype."""
    info = torch.finfo(found.dtype)
    largest = want.abs().amax(-1, keepdim=True)
    steps = torch.ldexp(torch.full_like(want, info.eps), torch.frexp(want).exponent - 1)  # between neighbors
    allowed = steps * (want != 0) / 2 + largest * _FLOAT32_SUMS + info.smallest_normal * info.eps
    if not bool(((found.double() - want).abs() <= allowed).all()):  # also where it is NaN
        raise CheckpointError(f"{where}: not base + scale x B A within one rounding of {info.dtype}")


def ask(job: Job, work: Path) -> list[Case]:
    """The cases, with the logits of the live model and of its weights as merged and as cast; images lie in ``work``."""
    cases: list[Case] = []
    for kind, model in _models(job):
        if kind == "live":
            tokenizer = loader.load_tokenizer(job.plan.view.directory)
            cases = [_case(model, tokenizer, work, *question) for question in QUESTIONS]
        for case in cases:
            case.logits[kind] = _logits(model, case)
    return cases


def _models(job: Job) -> Iterator[tuple[str, nn.Module]]:
    """The trained model in float32, one after the other: with live adapters, merged, and merged and cast."""
    plan = job.plan

    def build(tensors) -> nn.Module:
        return loader.build(plan.view.config, tensors, str(plan.view.directory), dtype=torch.float32)

    live = build(plan.tensors(merged=False))
    trained.attach_adapters(live, plan)
    yield "live", live.eval()
    del live
    merged = plan.tensors(merged=True)
    if plan.adapters or plan.token_rows:
        yield "merged", build(merged)
    keys, drafted = keys_of(job.draft.format, job.draft.config), job.draft.tensors
    typed = {name: cast(merged[name], to.dtype) for name, to in keys.to_ours(drafted).items()}
    if any(torch.promote_types(merged[name].dtype, tensor.dtype) != tensor.dtype for name, tensor in typed.items()):
        yield "cast", build(typed)


@torch.no_grad()
def _case(model, tokenizer, work: Path, name: str, question: str, images: list[str]) -> Case:
    """A case with the live model's own answer, and the noise of its logits."""
    tiling = tiling_of(model.config, {})
    paths = [_image(work / f"{each}.png", each, tiling.tile_size) for each in images]
    tiles = [normalize(tiling(load_image(path))) for path in paths]
    num_tiles, tokens = [len(part) for part in tiles], model.num_image_token
    parts = model.prompt_parts(question, num_tiles)
    prompt = "".join(f"<img>{'<IMG_CONTEXT>' * tokens * n}</img>" if kind == "image" else n for kind, n in parts)
    task = {
        "name": name,
        "question": question,
        "images": [path.name for path in paths],
        "num_tiles": num_tiles,
        "prompt": prompt,
        "ids": tokenizer(prompt).input_ids,
        "context": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "stop": tokenizer.convert_tokens_to_ids(get_conv_template(model.template).stop_token),
        "tiling": asdict(tiling),
        "answer": [],
    }
    case = Case(name, task, torch.cat(tiles) if tiles else None)
    options = dict(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=task["stop"])
    task["answer"] = model.generate(**_inputs(model, case), **options)[0].tolist()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    exact, hooks = _logits(model, case), [module.register_forward_hook(_in_halves) for module in linears]
    case.noise = (_logits(model, case) - exact).abs().max().item()
    for hook in hooks:
        hook.remove()
    return case


def _in_halves(module: nn.Linear, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """The output of a linear layer, its sums taken in two halves."""
    (x, *_), half = args, module.in_features // 2
    first = linear(x[..., :half], module.weight[:, :half], module.bias)
    return linear(x[..., half:], module.weight[:, half:]) + first


def _image(path: Path, name: str, side: int) -> Path:
    """Writes a small square, a wide or a tall image with structure and noise."""
    width, height = {"square": (side, side), "wide": (3 * side, 2 * side), "tall": (side, 2 * side + 7)}[name]
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)) * 55
    ramp = torch.linspace(0, 200, width)[:, None]
    Image.fromarray((ramp + noise).to(torch.uint8).numpy()).save(path)
    return path


def _inputs(model, case: Case) -> dict[str, torch.Tensor]:
    """A case's tiles, and the ids of its prompt with the answer as far as it is known."""
    model.img_context_token_id = case.task["context"]
    ids = torch.tensor([case.task["ids"] + case.task["answer"]])
    return {"pixel_values": case.pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def _logits(model, case: Case) -> torch.Tensor:
    """Logits [N, V] at the tokens of the case's answer."""
    return model(**_inputs(model, case)).logits[0, len(case.task["ids"]) - 1 : -1].clone()


def cost_of_cast(cases: list[Case], *, peft: bool) -> list[str]:
    """Lines on what casting the weights changes, and what helps where it changes answers; an adapter may (``peft``)."""
    if "cast" not in cases[0].logits:
        return []
    exact = torch.cat([case.exact for case in cases]).log_softmax(-1)
    cast = torch.cat([case.logits["cast"] for case in cases]).log_softmax(-1)
    divergence = (exact.exp() * (exact - cast)).sum(-1).mean().item()
    parted = int((exact.argmax(-1) != cast.argmax(-1)).sum())
    said = f"KL {divergence:.1e} nats per token, {parted} of {len(exact)} tokens change"
    helps = f"--dtype float32{' or --format peft' * peft} keeps those of the training"
    warning = [f"warning: the cast of the weights changes answers; {helps}"] if parted else []
    return [f"  cast of the weights: {said}", *warning]


def compare_opened(cases: list[Case], out: Path, work: Path) -> list[float]:
    """Opens the export in a clean process, in the folder of `ask`; the largest difference of each case's logits.

    Raises:
        CheckpointError: it doesn't open, or tiles, prompts, stop tokens or logits differ.
    """
    fields, want = read_json(out / "config.json"), cases[0].task["tiling"]
    if "llm_config" in fields:  # in other formats a processor cuts, whose tiles are compared below
        found = asdict(tiling_of(loader.config_from_fields(fields, out), {}))
        if found != want:
            raise CheckpointError(f"tile size, limits and thumbnail {found} differ from the training's, {want}")
    (work / "cases.json").write_text(json.dumps([case.task for case in cases]), encoding="utf-8")
    torch.save({case.name: case.pixels for case in cases}, work / "pixels.pt")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(work / "modules"), TOKENIZERS_PARALLELISM="false")
    command = [sys.executable, "-I", str(PROBE), str(out.resolve()), str(work)]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CheckpointError(f"a clean process can't use it: {lines[-1] if lines else 'no message'}")
    found = torch.load(work / "probe.pt", weights_only=True)
    return [_compare_opened(case, found[case.name]) for case in cases]


def _compare_opened(case: Case, found: dict) -> float:
    """Largest difference of a case's logits; errors as for `compare_opened`."""
    task = case.task
    wrong = [f"the {name} of its prompt" for name in found if name.endswith("ids") and found[name] != task["ids"]]
    if task["stop"] not in found["stops"]:
        wrong.append(f"stop tokens {found['stops']}, not {task['stop']},")
    made = found.get("processor pixels")
    if made is not None and (made.shape != case.pixels.shape or (made - case.pixels).abs().max() > PIXELS):
        wrong.append("the processor's tiles")
    if wrong:
        raise CheckpointError(f"case {case.name}: {' and '.join(wrong)} differ from the training's")
    want = case.logits.get("cast", case.exact)
    return case.gap(want, found["logits"], "the opened export's logits differ")
