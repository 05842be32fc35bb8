"""The registered training model: loads an official directory, selects what trains, computes the loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.autograd.graph import save_on_cpu
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from ..dtypes import resolve_dtype
from ..families import PARTS, families_of
from ..hub.constants import IMAGE_CONTEXT
from ..hub.modeling_flash import FLASH_PARTS
from ..ranges import ROW_MULTIPLE, check
from ..weights.loader import is_partitioned, load_model, load_tokenizer, over_ranks, partition_dtype, read_config
from .attention import SEGMENTS, Opaque, no_mask
from .blocks import compile_model_blocks, recompute_blocks, set_drop_path
from .losses import LossHead, next_token_loss, sum_over_ranks, token_log_probs
from .preprocessor import TilePreprocessor
from .rows import Row
from .sequence_parallel import check_heads, check_rotations, gather_features, own_group, sum_over_group
from .trainable import Part, WhatTrains, build_quantization_config, linear_quantizer


@MODELS.register_module()
class VisionLanguageModel(BaseModel):
    """Trains an InternVL-style model: vision encoder -> pixel shuffle -> projector -> LLM -> loss.

    The network is `xtuner_plugins.hub.InternVLChatModel` under the attribute ``model``, so a parameter is called
    ``model.`` + its official name. Each part is frozen, trained, or adapted with LoRA::

        freeze_visual_encoder=True                                  no gradient, no activation, not in the checkpoint
        freeze_visual_encoder=False                                 trained whole
        freeze_visual_encoder=True, visual_encoder_last_layers=4    the last four blocks trained whole
        freeze_visual_encoder=True, visual_encoder_lora=dict(type=LoraConfig, r=16, ...)

    Frozen parts are held in ``dtype``. Trained ones are held in float32 and computed under autocast, unless DeepSpeed
    keeps the float32 master copy.

    Args:
        base: Official InternVL directory (see ``tools/build_base_model.py``). Nothing in it is executed.
        freeze_visual_encoder, freeze_projector, freeze_llm: Freeze the part's own weights.
        visual_encoder_last_layers: Blocks of a frozen encoder that train whole, counted from the last one that features
            depend on; None trains none.
        train_head: Train the head of a frozen LLM whole, alone or beside LoRA.
        visual_encoder_lora, llm_lora: ``dict(type=LoraConfig, r=..., ...)`` of a frozen part, or None.
        visual_encoder_quantization, llm_quantization: ``dict(type=BitsAndBytesConfig, load_in_4bit=True, ...)`` holds
            the linear layers of a frozen part in 4 bits (QLoRA).
        dtype: ``'auto'`` (see `resolve_dtype`), ``'bfloat16'``, ``'float16'`` (the engine then scales the loss) or
            ``'float32'``.
        gradient_checkpointing: Recompute activations of the LLM's blocks in the backward pass, and of the encoder's.
        visual_encoder_checkpointing: The same for the encoder alone; None is what ``gradient_checkpointing`` says.
        offload_activations: With ``gradient_checkpointing``: the host's memory keeps the inputs of the LLM's blocks.
        drop_path: Stochastic depth of an InternViT that trains, whole or in part (`set_drop_path`).
        compile_blocks: See `compile_model_blocks`.
        row_multiple: On CUDA a row of tokens is filled up to a multiple of it (see `fill_row`).
        sequence_parallel: Ranks that share each row of tokens (see `models.sequence_parallel`): 1, 2, 4 or 8.
        data_preprocessor: Config of a `TilePreprocessor`; None takes ImageNet's mean and std.

    Raises:
        ValueError: Nothing would train, settings that contradict each other, or an unknown dtype or family.
    """

    def __init__(
        self,
        base: str,
        *,
        freeze_visual_encoder: bool = True,
        visual_encoder_last_layers: int | None = None,
        freeze_projector: bool = False,
        freeze_llm: bool = True,
        train_head: bool = False,
        visual_encoder_lora: Mapping[str, Any] | None = None,
        llm_lora: Mapping[str, Any] | None = None,
        llm_quantization: Mapping[str, Any] | None = None,
        visual_encoder_quantization: Mapping[str, Any] | None = None,
        dtype: str = "auto",
        gradient_checkpointing: bool = True,
        visual_encoder_checkpointing: bool | None = None,
        offload_activations: bool = False,
        drop_path: float = 0.0,
        compile_blocks: bool = False,
        row_multiple: int = ROW_MULTIPLE,
        sequence_parallel: int = 1,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor or dict(type=TilePreprocessor))
        self.dtype = resolve_dtype(dtype)
        encoder = Part(freeze_visual_encoder, visual_encoder_lora, visual_encoder_quantization)
        llm = Part(freeze_llm, llm_lora, llm_quantization)
        chosen = WhatTrains(encoder, llm, freeze_projector, visual_encoder_last_layers, train_head)
        chosen.check()
        self.model = _load(base, self.dtype, {"visual_encoder": visual_encoder_quantization, "llm": llm_quantization})
        self.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids(IMAGE_CONTEXT)
        self.model.img_context_token_id = self.img_context_token_id
        self.num_image_token, self.tile_size = self.model.num_image_token, self.model.config.force_image_size  # N, S
        self.sequence_parallel = check("sequence_parallel", sequence_parallel)
        check_heads(self.model.config.llm_config.to_dict(), sequence_parallel)
        preprocessor = self.data_preprocessor
        preprocessor.image_token, preprocessor.tokens_per_tile = self.img_context_token_id, self.num_image_token
        preprocessor.row_multiple = check("row_multiple", row_multiple)
        preprocessor.group = own_group(sequence_parallel)
        self._blocks_below = chosen.apply(self.model)  # frozen ones below those that train
        for name in FLASH_PARTS if self.model.flash_mode else ():
            getattr(self.model, name).requires_grad_(name in self.flash_parts)
        set_drop_path(self.model.vision_model, drop_path)
        self.model.language_model.set_attn_implementation(SEGMENTS)
        LossHead.take_over(self.model.language_model.get_output_embeddings())

        named = ((module, *each) for module in self.modules() for each in module.named_parameters(recurse=False))
        trainable = [(module, name, p) for module, name, p in named if p.requires_grad]
        if not trainable:
            raise ValueError("nothing would train: every part of the model is frozen and no LoRA is set")
        self._first_trained = trainable[0][:2]
        trained_dtype = partition_dtype(deepspeed_config()) if is_deepspeed_zero3_enabled() else torch.float32
        for _, _, parameter in trainable:
            if not is_partitioned(parameter):
                parameter.data = parameter.data.to(trained_dtype)
        self.visual_encoder_is_frozen = not any(p.requires_grad for p in self.model.vision_model.parameters())

        of_encoder = gradient_checkpointing if visual_encoder_checkpointing is None else visual_encoder_checkpointing
        recompute_blocks(self.model, llm=gradient_checkpointing, encoder=of_encoder)
        if offload_activations and not gradient_checkpointing:
            raise ValueError("offload_activations=True needs gradient_checkpointing=True: all else is too much to move")
        self._offloads = offload_activations
        if compile_blocks:
            compile_model_blocks(self.model)

    flash_parts: tuple[str, ...] = ()  # those of `FLASH_PARTS` that a subclass trains
    metric_names: tuple[str, ...] = ()  # of `forward`'s ``metrics``, where a subclass has some

    def end_step(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Called after each optimizer step with the metrics' sums over micro-batches and ranks; returns what to log."""
        return {}

    def parts(self) -> dict[str, nn.Module]:
        """The three parts by the names that the config uses; those of a Flash model too, by their own."""
        flash = {name: getattr(self.model, name) for name in FLASH_PARTS if self.model.flash_mode}
        return {name: getattr(self.model, part.attribute) for name, part in PARTS.items()} | flash

    def init_weights(self) -> None:
        """Does nothing: every weight comes from the base. MMEngine's would visit all of them, packed ones too."""

    def train(self, mode: bool = True):
        """As `torch.nn.Module.train`; what has no trainable parameter stays in evaluation mode (no dropout).

        Checkpointed blocks themselves, but not their attention and dropout modules, are in training mode: transformers
        recomputes only in such blocks, and the projector's gradient passes through a frozen LLM.
        """
        super().train(mode)
        for part in self.parts().values():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
                for module in part.modules():
                    if mode and isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                        module.training = True
        for block in self._blocks_below:
            block.eval()
        return self

    def state_dict(self, *args, **kwargs):
        """The trainable parameters only; the base holds the others."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        trained = {prefix + name for name, parameter in self.named_parameters() if parameter.requires_grad}
        for name in [name for name in state if name not in trained]:
            del state[name]
        return state

    def forward(
        self,
        row: Row,
        pixel_values: torch.Tensor,
        mode: str = "loss",
        mean_weight: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, torch.Tensor]:
        """Computes the loss of a batch.

        Args:
            row: The tokens of all samples, without padding, from `TilePreprocessor`, which has compared image tokens
                with tiles; or this rank's cut of them.
            pixel_values: Normalized tiles, float32 ``[T, 3, H, W]`` of all samples in order; T may be 0. Beside a cut
                row those that this rank encodes.
            mode: ``'loss'``.
            mean_weight: Supervised weight (or that of pairs) of the optimizer step per rank, a float32 scalar, if this
                is one of several micro-batches; None if it is the whole step.
            **others: What the preprocessor of a subclass makes beside these.

        Returns:
            ``loss``, ``num_supervised`` and ``num_tiles``, scalars, of a cut row its parts of them. ``sample_losses``,
            float64 ``[segments]`` of the whole row: the sum of cross entropy over each sample's targets, without
            weights; of preference pairs the loss of each. ``metrics``, float32: sums over the batch that `metric_names`
            names, if any.

        Raises:
            ValueError: Another mode, as `check_rotations`, or a row of another kind.
        """
        if mode != "loss":
            raise ValueError(f"{type(self).__name__} has the mode 'loss' alone, not {mode!r}")
        loss, sample_losses, metrics = self._compute(row, pixel_values, mean_weight, **others)
        counts = {"num_supervised": row.num_supervised, "num_tiles": len(pixel_values)}
        counts = {name: torch.full((), count, device=loss.device) for name, count in counts.items()}
        told = {} if metrics is None else {"metrics": metrics}
        return {"loss": loss, **counts, "sample_losses": sample_losses, **told}

    def _compute(
        self, row: Row, pixel_values: torch.Tensor, mean_weight: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Loss, losses of the samples, and metrics, as `forward` returns them."""
        with self.computing(pixel_values.device):
            hidden = self._run_llm(row, self._encode(pixel_values))[0, row.predicting]
            head = self.model.language_model.get_output_embeddings()
            loss, each = next_token_loss(hidden, row.targets, head, row.weights, mean_weight)
        return loss, sum_over_group(per_segment(row, each), row.segments.group), None

    def parse_losses(self, losses: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss to differentiate, and the values to log, over all ranks."""
        names = {"supervised_tokens": "num_supervised", "tiles": "num_tiles"}
        logged = {name: sum_over_ranks(losses[count].float()) for name, count in names.items()}
        return losses["loss"], {"loss": sum_over_ranks(losses["loss"]) / get_world_size(), **logged}

    def computing(self, device: torch.device) -> torch.autocast:
        """A context in which parameters held in float32 compute in the model's dtype."""
        module, name = self._first_trained
        held = getattr(module, name).dtype  # of all that trains; DeepSpeed changes it
        return torch.autocast(device.type, self.dtype, enabled=held == torch.float32 != self.dtype)

    def _run_llm(self, row: Row, patches: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[1, S, D]`` of a row with the encoder's ``patches``."""
        check_rotations(row.segments.longest, self.model.config.llm_config, row.segments.group)
        decoder = self.model.language_model.get_decoder()
        embeds = self._embed(row, patches)
        with save_on_cpu(pin_memory=embeds.is_cuda) if self._offloads else nullcontext():
            return decoder(
                inputs_embeds=embeds,
                attention_mask=no_mask(patches.device),
                position_ids=row.position_ids,
                segments=Opaque(row.segments),
                use_cache=False,
            ).last_hidden_state

    def _token_log_probs(self, row: Row, patches: torch.Tensor) -> torch.Tensor:
        """As `token_log_probs`, of a row with the encoder's ``patches``."""
        hidden = self._run_llm(row, patches)[0, row.predicting]
        return token_log_probs(hidden, row.targets, self.model.language_model.get_output_embeddings())

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tiles ``[T, 3, H, W]`` to patches of ``max(T, 1)`` tiles.

        A frozen encoder keeps no activations and computes in its own dtype: on CUDA autocast would run its norms in
        float32. Without tiles a black one stands in: encoder and projector run on every rank at every step, because
        ZeRO-3 gathers their parameters on all ranks together and DDP waits for their gradients.
        """
        if pixel_values.shape[0] == 0:
            pixel_values = pixel_values.new_zeros(1, 3, self.tile_size, self.tile_size)
        pixel_values = pixel_values.to(self.model.vision_model.dtype)
        if not self.visual_encoder_is_frozen:
            return self.model.encode_tiles(pixel_values)
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            return self.model.encode_tiles(pixel_values)

    def _embed(self, row: Row, patches: torch.Tensor) -> torch.Tensor:
        """Token embeddings ``[1, S, D]`` with image features in place of image tokens.

        Without any in the row those of the black tile are added, times 0.
        """
        embeds = self.model.get_input_embeddings()(row.input_ids)
        features = self.model.project(patches)  # [T, N, D]
        has_images = row.share.num_tiles if row.share else len(row.image_positions)  # those of all ranks that share it
        if not has_images:
            return embeds + features.sum().to(embeds.dtype) * 0.0
        return placed(embeds, row.image_positions, gather_features(features, row.share, row.segments.group))


def placed(embeds: torch.Tensor, positions: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Embeddings ``[1, S, D]`` with features ``[P, D]`` at positions ``[P]``; backward keeps none of them."""
    return embeds[0].index_put((positions,), features.to(embeds.dtype))[None]


def per_segment(row: Row, values: torch.Tensor) -> torch.Tensor:
    """Sums over the targets of each segment of the whole row, float64; ``values`` begins with one per target."""
    sums = values.new_zeros(len(row.segments.bounds) - 1, dtype=torch.float64)
    return sums.index_add_(0, row.owners, values[: row.num_supervised].double())


def _load(base: str, dtype: torch.dtype, quantized: Mapping[str, Mapping[str, Any] | None]):
    """Loads the base: whole, split over the ranks of ZeRO-3, or with linear layers of parts in 4 bits.

    Under ``torch.device('meta')`` no weight is read, but names, shapes and settings are checked.
    """
    packing = {part: build_quantization_config(own, part) for part, own in quantized.items() if own is not None}
    if torch.get_default_device().type == "meta":
        return load_model(base, dtype=dtype, device="meta")
    if packing:
        families = families_of(read_config(base).to_dict())
        packers = [
            linear_quantizer(PARTS[part].attribute, families[part].packed_linears, config, dtype)
            for part, config in packing.items()
        ]
        return load_model(base, dtype=dtype, filled=lambda *layer: [packer(*layer) for packer in packers])
    if is_deepspeed_zero3_enabled():
        config = deepspeed_config()
        return load_model(base, dtype=partition_dtype(config), filled=over_ranks(config))
    return load_model(base, dtype=dtype)
