"""What is planned: a model, what of it trains, the micro-batches, and the strategy that spreads it over GPUs."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..families import PARTS
from ..settings import read_deepspeed
from .shapes import Linear, Shape, Stack

FLOAT = 4  # bytes of a float32
MOMENTS = 2 * FLOAT  # bytes per trained weight of AdamW's state


@dataclass(frozen=True)
class Adapters:
    """LoRA on a part."""

    rank: int
    targets: str | Sequence[str]  # names of linear layers, or a regular expression, as PEFT's `target_modules`
    dropout: bool  # whether there is any

    def parameters(self, stack: Stack) -> int:
        """Weights of all A and B matrices."""
        pairs = ((each.inputs + each.outputs) * each.copies for each in stack.matching(self.targets))
        return stack.layers * self.rank * sum(pairs)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank: samples behind each other in one row, without padding."""

    tokens: int  # S, of all samples
    tiles: int  # T, of all samples
    supervised: int  # K, tokens with a label

    def shared(self, ranks: int) -> Batch:
        """The part of one of several ranks that share the row; all labels may stand in it."""
        tokens, tiles = -(-self.tokens // ranks), -(-self.tiles // ranks)
        return Batch(tokens, tiles, min(self.supervised, tokens))


@dataclass(frozen=True)
class Job:
    """A run, as far as memory and time depend on it."""

    shape: Shape
    whole: frozenset[str]  # parts that train whole; of a Flash model `mlp2` or `router` among them
    batches: tuple[Batch, ...]  # micro-batches that the plan must hold; the largest counts
    adapters: Mapping[str, Adapters] = field(default_factory=dict)  # by part
    quantized: Mapping[str, Sequence[str]] = field(default_factory=dict)  # part -> linear layers held in 4 bits
    last_layers: int = 0  # blocks of a frozen encoder that train whole, counted from the last
    train_head: bool = False  # the head of a frozen LLM trains
    recompute: bool = True  # gradient checkpointing of the LLM
    recompute_encoder: bool = True
    on_host: bool = False  # inputs of the LLM's blocks are kept in the CPU's memory
    half: bool = True  # bfloat16 or float16, which take the same, else everything is float32
    float_weights: bool = True  # trained weights are float32 and computed under autocast, as without DeepSpeed
    accumulation: int = 1  # micro-batches of an optimizer step
    moments: float = MOMENTS  # bytes of the optimizer's state per trained weight
    pairs: bool = False  # preference pairs or Flash's answers: the head runs again in the backward pass
    reference: bool = False  # every micro-batch is also read by the model as it was before training
    sharing: int = 1  # ranks that share each row (`sequence_parallel`)

    def stack(self, part: str) -> Stack:
        """The encoder's or the LLM's blocks."""
        return self.shape.encoder if part == "visual_encoder" else self.shape.llm

    def adapted(self, part: str) -> list[Linear]:
        """Linear layers of a block that have LoRA."""
        return self.stack(part).matching(self.adapters[part].targets) if part in self.adapters else []

    def adapter_parameters(self, parts: Container[str] = PARTS) -> int:
        """Parameters of LoRA alone, of these parts."""
        return sum(lora.parameters(self.stack(part)) for part, lora in self.adapters.items() if part in parts)

    @property
    def encoder_whole(self) -> int:
        """Parameters of the encoder that train whole."""
        if "visual_encoder" in self.whole:
            return self.shape.encoder.parameters - self.shape.unused
        return self.last_layers * self.shape.encoder.block

    @property
    def trained(self) -> int:
        """Parameters with a gradient, adapters included."""
        rest = sum(self.shape.part(part) for part in self.whole - {"visual_encoder"})
        return rest + self.encoder_whole + self.train_head * self.shape.table + self.adapter_parameters()

    @property
    def copied(self) -> int:
        """Parameters of which the reference keeps a frozen copy: adapters are switched off instead."""
        whole = self.trained - self.adapter_parameters() - self.shape.part("mlp2") * ("mlp2" in self.whole)
        return whole * self.reference

    @property
    def packed(self) -> int:
        """Weights held in 4 bits."""
        return sum(
            self.stack(part).layers * sum(linear.weights for linear in self.stack(part).matching(names))
            for part, names in self.quantized.items()
        )

    @property
    def frozen(self) -> int:
        """Parameters without a gradient that aren't packed."""
        return self.shape.parameters - self.packed - (self.trained - self.adapter_parameters())

    @property
    def size(self) -> int:
        """Bytes of an activation and of a frozen weight."""
        return 2 if self.half else FLOAT

    @property
    def autocasts(self) -> bool:
        """Whether trained weights are cast whenever they are used."""
        return self.half and self.float_weights

    @property
    def encoder_blocks(self) -> int:
        """Blocks of the encoder that a gradient passes through."""
        reached = "visual_encoder" in self.whole or "visual_encoder" in self.adapters
        return self.shape.used_layers if reached else self.last_layers

    @property
    def trains_head(self) -> bool:
        """Whether the LLM's head trains."""
        return self.train_head or "llm" in self.whole

    @property
    def projector_learns(self) -> bool:
        """Whether a gradient passes through the projector."""
        return "projector" in self.whole or self.encoder_blocks > 0


@dataclass(frozen=True)
class Strategy:
    """How a run is spread over GPUs; defaults are DeepSpeed's."""

    name: str  # as in reports, e.g. `DDP` or `deepspeed_zero3_offload`
    gpus: int  # processes of the run, one per GPU
    stage: int | None = None  # of ZeRO; None without DeepSpeed
    offload_optimizer: bool = False  # float32 master copy, moments and gradients live in the CPU's memory
    offload_weights: bool = False  # the sharded weights too
    bucket: int = 500_000_000  # elements of a bucket of gradients
    live: int = 1_000_000_000  # elements of gathered weights that ZeRO-3 keeps at most
    prefetch: int = 50_000_000  # elements of weights that ZeRO-3 gathers ahead
    overlap: bool = False  # gradients are reduced while others are computed, from two buckets
    gradient_size: int = 2  # bytes of a gradient that DeepSpeed sums
    on_cpu: bool = False


def launched(line: str) -> tuple[int, str | None]:
    """Processes of a launch line, and its value of ``--deepspeed``."""
    processes, deepspeed = re.search(r"NPROC_PER_NODE=(\d+)", line), re.search(r"--deepspeed[ =](\S+)", line)
    return int(processes[1]) if processes else 1, deepspeed and deepspeed[1]


def plain(gpus: int, on_cpu: bool = False) -> Strategy:
    """Without DeepSpeed."""
    return Strategy("DDP" if gpus > 1 else "one process", gpus, on_cpu=on_cpu)


def strategy_named(name: str | None, gpus: int) -> Strategy:
    """The strategy of a name for ``--deepspeed``; DDP for None."""
    return from_deepspeed(name, read_deepspeed(name), gpus) if name else plain(gpus)


def from_deepspeed(name: str, settings: Mapping[str, Any], gpus: int) -> Strategy:
    """The strategy of a DeepSpeed JSON file; what it doesn't say is DeepSpeed's own default.

    Raises:
        ValueError: ZeRO's stage is none of 1, 2, 3.
    """
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        raise ValueError(f"{name}: zero_optimization.stage is {stage!r}; plans are made for 1, 2 and 3")
    keys = dict(bucket="reduce_bucket_size", live="stage3_max_live_parameters", prefetch="stage3_prefetch_bucket_size")
    sizes = {field: int(zero[key]) for field, key in keys.items() if key in zero}
    offloads = [(zero.get(f"offload_{each}") or {}).get("device", "none") != "none" for each in ("optimizer", "param")]
    size = FLOAT if (settings.get("data_types") or {}).get("grad_accum_dtype") == "fp32" else 2
    overlap = zero.get("overlap_comm", stage == 3)
    return Strategy(name, gpus, stage, *offloads, **sizes, overlap=overlap, gradient_size=size)


def obstacle(job: Job, strategy: Strategy) -> str:
    """Why a job can't run under a strategy, with the remedy; '' if it can."""
    if strategy.gpus % job.sharing or job.shape.llm.heads % math.lcm(job.shape.llm.kv_heads, job.sharing):
        numbers = f"the {strategy.gpus} GPUs and the LLM's {job.shape.llm.heads} attention heads"
        return f"sequence_parallel={job.sharing} must divide {numbers}; give other --gpus, or another value"
    if strategy.stage == 3 and job.quantized:
        return "packed weights can't be partitioned by ZeRO-3; use --deepspeed deepspeed_zero2"
    if strategy.stage == 3 and job.copied:
        copy = "the reference's frozen copy of what trains can't be partitioned by ZeRO-3"
        return f"{copy}; use precompute_reference=True or --deepspeed deepspeed_zero2"
    return ""
