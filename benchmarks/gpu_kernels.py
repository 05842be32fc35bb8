"""(imported) rows of bench_gpu.py about kernels: which a step took, and attention by itself beside float32."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_map_only

from benchmarks.gpu_rows import WARM_UP, Clock, Trainer, quartiles
from xtuner_plugins.models import attention as shipped
from xtuner_plugins.models.rows import make_row

# In names of operators and of CUDA kernels; the first that is found. cuDNN's kernels have "flash" in their names, too.
ATTENTION = (
    ("varlen", r"varlen_attn"),
    ("cudnn", r"cudnn\w*(attention|sdpa|mha)"),
    ("mem-efficient", r"efficient_attention|fmha_cutlass|MemEffAttention"),
    ("flash", r"flash_attention|flash_(fwd|bwd)|flash::"),
    ("math", r"attention_math"),
)
ADAMW = (("fused", r"_fused_adamw_"), ("foreach", r"_foreach_addcdiv_"), ("one by one", r"aten::addcdiv_"))
PART = "part "
TOP = 6  # kernels named per part
HEAD_DIMS = (64, 96, 128, 256)
HEADS, KEY_HEADS = 16, 4
REPEATS = 10


def kernels(bench) -> Iterator[dict]:
    """Of each part of a step: operators of attention by kind, the kernels with the most time; AdamW's kind."""
    for stage in ("lora", "full"):  # where memory ends, the smaller one is told
        yield from kernels_of(bench, stage)


def kernels_of(bench, stage: str) -> Iterator[dict]:
    trainer = Trainer(bench, stage)
    for number in range(WARM_UP):
        trainer.step(number)
    with marked_parts(trainer.model):
        events = profiled(bench.device, partial(trainer.step, WARM_UP))
    found, update, times, launches = defaultdict(Counter), set(), defaultdict(Counter), Counter()
    for event in events:
        part = part_of(event)
        if (kind := kind_of(event.name, ATTENTION)) and not is_inside_attention(event):
            found[part][kind] += 1
        if part == "optimizer":
            update.add(kind_of(event.name, ADAMW))
        for kernel in event.kernels:
            if kernel.name != event.name:  # the GPU's copy of a marked range
                times[part][kernel.name] += kernel.duration / 1000
                launches[part, kernel.name] += 1
    for part in sorted(found.keys() | times.keys()):
        top = [
            {"kernel": name[:160], "ms": round(took, 3), "launches": launches[part, name]}
            | ({"attention": kind} if (kind := kind_of(name, ATTENTION)) else {})
            for name, took in times[part].most_common(TOP)
        ]
        total = round(times[part].total(), 3) if bench.device == "cuda" else "needs CUDA"
        yield {"stage": stage, "part": part, "attention": dict(found[part]), "ms": total, "top": top}
    yield {
        "stage": stage,
        "part": "optimizer",
        "adamw": next((kind for kind, _ in ADAMW if kind in update), "not seen"),
    }


def kind_of(name: str, kinds: tuple[tuple[str, str], ...]) -> str | None:
    return next((kind for kind, pattern in kinds if re.search(pattern, name)), None)


def above(event) -> Iterator:
    """The events around it, the innermost first."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def is_inside_attention(event) -> bool:
    """Whether another operator of attention calls this one: both are one then."""
    return any(kind_of(each.name, ATTENTION) for each in above(event))


def part_of(event) -> str:
    """The outermost marked range around an operator: blocks that run again in the backward pass belong to it."""
    part = "rest"
    for each in (event, *above(event)):
        if each.name.startswith(PART):
            part = each.name.removeprefix(PART)
        elif each.name.startswith("autograd::engine"):
            part = "backward"
        elif each.name.startswith("Optimizer.step"):
            part = "optimizer"
    return part


@contextmanager
def marked_parts(model) -> Iterator[None]:
    """Ranges of the profiler around encoder, projector, LLM and head."""
    llm = model.model.language_model
    calls = {
        "encoder": (model.model.vision_model, "patch_features"),
        "projector": (model.model.mlp1, "forward"),
        "llm": (llm.get_decoder(), "forward"),
        "head": (llm.get_output_embeddings(), "forward"),
    }
    with ExitStack() as stack:
        for part, (module, method) in calls.items():
            marked = record_function(PART + part)(getattr(module, method))
            stack.enter_context(mock.patch.object(module, method, marked))
        yield


def profiled(device: str, run) -> list:
    """The profiler's events of a call."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, acc_events=True) as profiler:
        run()
        if device == "cuda":
            torch.cuda.synchronize()
    return profiler.events()


def attention(bench) -> Iterator[dict]:
    """`segment_attention` by its varlen kernel and by SDPA: time of forward and backward, largest error, kernels.

    Grouped heads; samples alone, with answers that branch off a prompt, and with a sliding window. The error is the
    largest difference to a float32 reference with a mask of the whole row, over the reference's largest value.
    """
    tokens, window = (96, 16) if bench.tiny else (4096, 512)
    dtype = torch.float32 if bench.device == "cpu" else torch.bfloat16
    if bench.device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = torch.float16
    for head_dim in HEAD_DIMS:
        for layout in ("samples", "branches", "window"):
            segments, seen = layout_of(tokens, layout, window, bench.device)
            generator = torch.Generator(bench.device).manual_seed(0)
            states = [
                torch.randn(1, heads, tokens, head_dim, generator=generator, device=bench.device, dtype=dtype)
                for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
            ]
            expected = run_attention(states, lambda q, k, v, seen=seen: dense_attention(q, k, v, seen), torch.float32)
            sliding = window if layout == "window" else None

            def ours(query, key, value, segments=segments, sliding=sliding):
                options = {"segments": segments, "sliding_window": sliding}
                return shipped.segment_attention(None, query, key, value, None, **options)[0].transpose(1, 2)

            about = {"head_dim": head_dim, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}
            if shipped._flash_runs(states[0], 0.0):
                yield about | {"way": "varlen"} | measured(bench, states, ours, expected)
            else:
                needs = "CUDA" if bench.device == "cpu" else "Ampere or newer"
                yield about | {"way": "varlen", "skipped": f"needs {needs}"}
            with mock.patch.object(shipped, "_flash_runs", lambda *args: False):
                yield about | {"way": "sdpa"} | measured(bench, states, ours, expected)


def measured(bench, states, function, expected) -> dict:
    """Time, error and kinds of kernels of one way; what can't run says why."""
    try:
        found = run_attention(states, function)
        events = profiled(bench.device, lambda: run_attention(states, function))
        clock = Clock(bench.device)
        for _ in range(2 if bench.tiny else REPEATS):
            run_attention(states, function)
            clock.mark()
        seconds = clock.seconds()
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[0]}
    names = ("output", "query", "key", "value")
    errors = {
        name: float(f"{(ours.float() - exact).abs().max() / exact.abs().max():.2g}")
        for name, ours, exact in zip(names, found, expected, strict=True)
    }
    kinds = Counter(kind_of(event.name, ATTENTION) for event in events if not is_inside_attention(event))
    del kinds[None]
    return {"seconds": quartiles(seconds), "max_error": errors, "operators": dict(kinds)}


def run_attention(states, function, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Output, and gradients of query, key and value."""
    *inputs, gradient = (state.to(dtype or state.dtype) for state in states)
    inputs = [state.detach().requires_grad_() for state in inputs]
    output = function(*inputs)
    output.backward(gradient)
    return [output.detach(), *(state.grad for state in inputs)]


def dense_attention(query, key, value, seen) -> torch.Tensor:
    """The reference: every score of the row, by PyTorch's math kernel."""
    key, value = (state.repeat_interleave(HEADS // KEY_HEADS, dim=1) for state in (key, value))
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)


def layout_of(tokens: int, layout: str, window: int, device: str):
    """The segments of a row as a batch brings them, and which token sees which, bool ``[S, S]``."""
    cuts = (0, 5, 10, 12, 21, 26, 32)  # thirty-seconds of the row
    bounds = torch.tensor([tokens * cut // 32 for cut in cuts])
    follows = torch.tensor([-1, 0, 0, -1, 3, -1] if layout == "branches" else [-1] * 6)
    ids = torch.ones(1, tokens, dtype=torch.int64)
    batch = {"input_ids": ids, "cu_seqlens": bounds.int()} | ({"follows": follows} if layout == "branches" else {})
    row = make_row(batch, image_token=0)
    owner = torch.arange(6).repeat_interleave(bounds.diff())
    starts = torch.where(follows < 0, bounds[:-1], bounds[:-1] - bounds.diff()[follows])
    position = torch.arange(tokens) - starts[owner]  # an answer goes on from its prompt
    related = (owner[:, None] == owner) | (follows[owner][:, None] == owner)
    distance = position[:, None] - position
    seen = related & (distance >= 0) & (distance < (window if layout == "window" else tokens))
    segments = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), row.segments)
    return segments, seen.to(device)
