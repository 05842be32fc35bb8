"""What is planned: a model, what of it trains, a micro-batch, and the strategy that spreads it over GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .shapes import Shape, Stack

FLOAT = 4  # bytes of a float32
MOMENTS = 2 * FLOAT  # bytes per trained weight of AdamW's state


@dataclass(frozen=True)
class Adapters:
    """LoRA on a part.

    Attributes:
        rank: r.
        targets: names of linear layers, or a regular expression, as PEFT's `target_modules`.
        dropout: whether there is any.
        dora: DoRA, which adds a magnitude per output.
    """

    rank: int
    targets: str | Sequence[str]
    dropout: bool
    dora: bool = False

    def parameters(self, stack: Stack) -> int:
        """Weights of all A and B matrices, and DoRA's magnitudes."""
        linears = stack.matching(self.targets)
        pairs = sum(self.rank * (each.inputs + each.outputs) * each.copies for each in linears)
        return stack.layers * (pairs + self.dora * sum(each.outputs * each.copies for each in linears))


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank: samples behind each other in one row, without padding.

    Attributes:
        tokens: S, of all samples.
        tiles: T, of all samples.
        supervised: K, tokens with a label.
    """

    tokens: int
    tiles: int
    supervised: int


@dataclass(frozen=True)
class Job:
    """A run, as far as memory and time depend on it.

    Attributes:
        shape: of the model.
        whole: parts that train whole.
        adapters: part -> LoRA.
        quantized: part -> names of its packed linear layers, held in 4 bits.
        last_layers: blocks of a frozen encoder that train whole, counted from the last.
        recompute: gradient checkpointing of the LLM.
        encoder_group: blocks of the encoder that are recomputed together; 0 for none, None for one where the LLM's are.
        recompute_projector: gradient checkpointing of the projector.
        half: bfloat16 or float16, which take the same, else everything is float32.
        float_weights: trained weights are held in float32 and computed under autocast, as without DeepSpeed.
        batches: micro-batches that the plan must hold; the largest counts.
        accumulation: micro-batches of an optimizer step.
        moments: bytes of the optimizer's state per trained weight.
        keeps_encoder: the encoder's activations are kept even with `recompute`, as under ZeRO-3 with LoRA on it.
        pairs: preference pairs, whose log probabilities are computed a second time in the backward pass.
        reference: every micro-batch of pairs is also read by the model as it was before training.
        trains_rows: single rows of a frozen LLM's embedding and head train, those of new tokens.
    """

    shape: Shape
    whole: frozenset[str]
    batches: tuple[Batch, ...]
    adapters: Mapping[str, Adapters] = field(default_factory=dict)
    quantized: Mapping[str, Sequence[str]] = field(default_factory=dict)
    last_layers: int = 0
    recompute: bool = True
    encoder_group: int | None = None
    recompute_projector: bool = False
    half: bool = True
    float_weights: bool = True
    accumulation: int = 1
    moments: float = MOMENTS
    keeps_encoder: bool = False
    pairs: bool = False
    reference: bool = False
    trains_rows: bool = False

    def stack(self, part: str) -> Stack:
        """The encoder's or the LLM's blocks."""
        return self.shape.encoder if part == "visual_encoder" else self.shape.llm

    @property
    def adapter_parameters(self) -> int:
        """Parameters of LoRA alone."""
        return sum(adapters.parameters(self.stack(part)) for part, adapters in self.adapters.items())

    @property
    def trained(self) -> int:
        """Parameters with a gradient, adapters included."""
        unused = self.shape.unused if "visual_encoder" in self.whole else 0
        whole = sum(self.shape.part(part) for part in self.whole) - unused
        return whole + self.last_layers * self.shape.encoder.block + self.adapter_parameters

    @property
    def copied(self) -> int:
        """Parameters of which the reference keeps a frozen copy: adapters are switched off instead."""
        return self.trained - self.adapter_parameters if self.reference else 0

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
        return self.shape.parameters - self.packed - (self.trained - self.adapter_parameters)

    @property
    def size(self) -> int:
        """Bytes of an activation and of a frozen weight."""
        return 2 if self.half else FLOAT

    @property
    def autocasts(self) -> bool:
        """Whether trained weights are cast whenever they are used."""
        return self.half and self.float_weights

    @property
    def group(self) -> int:
        """Blocks of the encoder that run again together in the backward pass; 0 where none does."""
        wanted = int(self.recompute) if self.encoder_group is None else self.encoder_group
        return 0 if self.keeps_encoder else min(wanted, self.encoder_blocks)

    @property
    def encoder_blocks(self) -> int:
        """Blocks of the encoder that a gradient passes through."""
        if "visual_encoder" in self.whole or "visual_encoder" in self.adapters:
            return self.shape.used_layers
        return self.last_layers

    @property
    def encoder_is_whole(self) -> bool:
        """Whether the weights of these blocks train themselves."""
        return "visual_encoder" in self.whole or self.last_layers > 0

    @property
    def projector_learns(self) -> bool:
        """Whether a gradient passes through the projector."""
        return "projector" in self.whole or self.encoder_blocks > 0


@dataclass(frozen=True)
class Strategy:
    """How a run is spread over GPUs.

    Attributes:
        name: as in reports, e.g. `DDP` or `deepspeed_zero3_offload`.
        gpus: processes of the run, one per GPU.
        stage: of ZeRO; None without DeepSpeed.
        offload_optimizer: float32 master copy, moments and gradients live in the CPU's memory.
        offload_weights: the sharded weights too.
        bucket: elements of a bucket of gradients.
        live: elements of gathered weights that ZeRO-3 keeps at most.
        overlap: gradients are reduced while others are computed, from two buckets.
        gradient_size: bytes of a gradient that DeepSpeed sums.
    """

    name: str
    gpus: int
    stage: int | None = None
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 500_000_000  # DeepSpeed's reduce_bucket_size
    live: int = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
    overlap: bool = False
    gradient_size: int = 2
