"""The chat model: InternViT (or CLIP, SigLIP), pixel shuffle, projector `mlp1`, and a language model of transformers.

Self-contained: this folder is copied into exports and runs there with torch and transformers alone. Shapes in the
docstrings: B batch, S sequence, H width of the LLM, T tiles in the batch, P patches per tile, D width of the encoder,
N image tokens per tile (P after the pixel shuffle).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from .chat_methods import ChatMethods
from .configuration_intern_vit import InternVisionConfig
from .configuration_internvl_chat import InternVLChatConfig, num_image_tokens
from .constants import IGNORE_INDEX, PROJECTOR_TYPES, projector_input_width
from .conversation import get_conv_template, own_system
from .modeling_flash import FlashMethods
from .modeling_intern_vit import InternVisionModel
from .modeling_vision_tower import TransformersTower
from .prompts import PromptEncoder  # noqa: F401  transformers fetches only the files that this one itself imports


class InternVLChatModel(ChatMethods, FlashMethods, PreTrainedModel):
    """InternViT (or a CLIP or SigLIP tower) + pixel shuffle + `mlp1` + LLM, in the published layout.

    Args:
        config: An `InternVLChatConfig`.
        vision_model: Encoder to use instead of a fresh one.
        language_model: LLM to use instead of a fresh one.
        use_flash_attn: Without effect; pass `attn_implementation` to `from_pretrained` to choose an implementation.

    Attributes:
        num_image_token: N, the number of `<IMG_CONTEXT>` tokens per tile.
        img_context_token_id: Id of that token; `None` until `chat` or a caller sets it.
        template, conv_template: The conversation template and its name.
        system_message: System message of `chat` and `batch_chat`; assign to change it.

    Raises:
        ValueError: An unknown template, LLM, norm or pixel shuffle, unmerged adapters, or sizes that don't fit.
    """

    _auto_class = "AutoModel"  # `save_pretrained` writes this code beside the weights in every release
    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = InternVisionModel._no_split_modules + [  # and those of the LLM, see `__init__`
        f"{tower}{part}" for tower in ("CLIP", "Siglip") for part in ("VisionEmbeddings", "EncoderLayer")
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # what releases before 4.53 ask for

    def __init__(self, config, vision_model=None, language_model=None, use_flash_attn=True):
        super().__init__(config)
        config = self.config
        if config.use_backbone_lora or config.use_llm_lora:
            raise ValueError("config.json names unmerged adapters (use_backbone_lora, use_llm_lora); merge them first")
        if config.ps_version not in ("v1", "v2"):
            raise ValueError(f"config.json: ps_version = {config.ps_version!r}; legal are 'v1', 'v2'")
        share_attention(config)

        self.template = config.template
        self.conv_template = get_conv_template(config.template, **own_system(vars(config)))
        self.system_message = self.conv_template.system_message
        self.select_layer = config.select_layer
        self.ps_version = config.ps_version
        self.downsample_ratio = config.downsample_ratio
        self.projector_type = getattr(config, "projector_type", PROJECTOR_TYPES[0])
        self.patch_size = config.vision_config.patch_size
        self.num_image_token = num_image_tokens(config)
        self.img_context_token_id = None

        is_own = config.vision_config.model_type == InternVisionConfig.model_type
        vision_class = InternVisionModel if is_own else TransformersTower
        self.vision_model = vision_class(config.vision_config) if vision_model is None else vision_model
        if language_model is None:
            # `from_config` of newer releases would use the dtype that this part of the config names.
            language_model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.llm_config)](config.llm_config)
        self.language_model = language_model
        self.mlp1 = make_projector(config)
        self.flash_mode = bool(getattr(config, "flash_mode", False))
        if self.flash_mode:
            self.add_flash_parts(config)
        self._no_split_modules = [*self._no_split_modules, *(self.language_model._no_split_modules or ())]
        self.post_init()

    def get_input_embeddings(self):
        """The LLM's token embeddings."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        """The LLM's head."""
        return self.language_model.get_output_embeddings()

    def resize_token_embeddings(self, *args, **kwargs):
        """Resizes the LLM's embeddings and head, and `llm_config.vocab_size` with them."""
        embeddings = self.language_model.resize_token_embeddings(*args, **kwargs)
        self.config.llm_config.vocab_size = self.language_model.config.vocab_size
        return embeddings

    lm_head = property(get_output_embeddings)  # as the published code names it

    def pixel_shuffle(self, x, scale_factor=0.5):
        """Trades resolution for width: r x r neighboring patches become one token, r = 1 / scale_factor.

        Args:
            x: [T, rows, columns, D].
            scale_factor: Side of the result relative to the side of `x`.

        Returns:
            [T, rows / r, columns / r, D * r * r]; for `ps_version` v1 transposed to [T, columns / r, rows / r, ...].

        Raises:
            ValueError: Rows or columns are no multiple of r.
        """
        tiles, rows, columns, width = x.shape
        r = int(1 / scale_factor)
        if rows % r or columns % r:
            raise ValueError(f"pixel shuffle: a grid of {rows} x {columns} patches can't be merged {r} x {r}")
        x = x.reshape(tiles, rows // r, r, columns // r, r, width)
        # In a merged vector the row inside the r x r cell varies slowest, then the column, then the channel.
        order = (0, 1, 3, 2, 4, 5) if self.ps_version == "v2" else (0, 3, 1, 2, 4, 5)
        return x.permute(*order).flatten(3)

    def encode_tiles(self, pixel_values):
        """Patch features [T, P, D] of tiles [T, 3, S, S] (normalized), from the layer `select_layer`."""
        return self.vision_model.patch_features(pixel_values, self.select_layer)

    def project(self, patch_features):
        """Merging of patches and projector: [T, P, D] of `encode_tiles` -> [T, N, H]."""
        side = int(patch_features.shape[1] ** 0.5)
        features = patch_features.unflatten(1, (side, side))
        if self.projector_type == "bilinear_mlp":
            size = (int(side * self.downsample_ratio),) * 2
            merged = F.interpolate(features.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)
        else:
            merged = self.pixel_shuffle(features, self.downsample_ratio)
        return self.mlp1(merged.flatten(1, 2))

    def extract_feature(self, pixel_values):
        """Image tokens [T, N, H] of tiles [T, 3, S, S], normalized."""
        return self.project(self.encode_tiles(pixel_values))

    def place_features(self, inputs_embeds, input_ids, features):
        """Puts image features where `<IMG_CONTEXT>` tokens stand, in order.

        Args:
            inputs_embeds: [B, S, H].
            input_ids: int64 [B, S].
            features: [T, N, H] (or any [..., H]); `None` for no images.

        Returns:
            New embeddings [B, S, H]. Gradients flow to both inputs.

        Raises:
            ValueError: The counts of image tokens and features differ; the message names both.
        """
        if self.img_context_token_id is None and features is not None:
            raise ValueError("img_context_token_id is not set; assign the id of <IMG_CONTEXT> before passing images")
        if self.img_context_token_id is None:
            return inputs_embeds
        mask = input_ids == self.img_context_token_id
        num_image_tokens, num_features = int(mask.sum()), 0 if features is None else features[..., 0].numel()
        if num_image_tokens != num_features:
            raise ValueError(
                f"{num_image_tokens} image tokens in input_ids, but {num_features} image features from the images; "
                f"each tile takes {self.num_image_token} <IMG_CONTEXT> tokens"
            )
        if features is None:
            return inputs_embeds
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)  # whose numbers are taken in order
        return inputs_embeds.masked_scatter(mask.unsqueeze(-1).to(inputs_embeds.device), features)

    def forward(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        image_flags=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Logits, and a loss when there are labels.

        Args:
            pixel_values: Tiles [T, 3, S, S], normalized, of the whole batch in order; `None` without images.
            input_ids: int64 [B, S].
            attention_mask: [B, S], 1 or True where there is a token.
            position_ids: int64 [B, S].
            image_flags: int64 [T] or [T, 1]; 0 marks a dummy tile whose features aren't used. `None`: no dummies.
            past_key_values, use_cache, output_attentions, output_hidden_states: As the LLM takes them.
            labels: int64 [B, S], -100 where ignored; shifted here.
            return_dict: `False` for a tuple.

        Returns:
            `loss` (mean over labels), `logits` [B, S, vocabulary], `past_key_values`, `hidden_states`, `attentions`.

        Raises:
            ValueError: Image tokens and image features, or flags and tiles, differ in number.
        """
        inputs_embeds = self.get_input_embeddings()(input_ids)
        features = None if pixel_values is None else self.extract_feature(pixel_values)
        if features is not None and image_flags is not None:
            flags = image_flags.reshape(-1).to(features.device)
            if len(flags) != len(features):
                raise ValueError(f"{len(flags)} image flags for {len(features)} tiles")
            features = features[flags == 1]
        inputs_embeds = self.place_features(inputs_embeds, input_ids, features)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        loss = None if labels is None else next_token_loss(outputs.logits, labels)
        kept = ("logits", "past_key_values", "hidden_states", "attentions")
        found = CausalLMOutputWithPast(loss=loss, **{name: getattr(outputs, name) for name in kept})
        return found.to_tuple() if return_dict is False else found

    @torch.no_grad()
    def generate(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        visual_features=None,
        generation_config=None,
        output_hidden_states=None,
        **generate_kwargs,
    ):
        """Generates text.

        Args:
            pixel_values: Tiles [T, 3, S, S], normalized; `None` without images. Those of a Flash model are compressed
                as its router chooses; `forward` and `visual_features` know no compression.
            input_ids: int64 [B, S], with `<IMG_CONTEXT>` tokens for the tiles; left-padded where lengths differ.
            attention_mask: [B, S].
            visual_features: [T, N, H] in place of `pixel_values`.
            generation_config: A `GenerationConfig`; without one, and `eos_token_id`, it stops at `stop_token_ids`.
            output_hidden_states, **generate_kwargs: As the LLM's own `generate` takes them, a `streamer` too.

        Returns:
            What the LLM's `generate` returns; ids are those of the new tokens only.

        Raises:
            ValueError: Image tokens and image features differ in number.
        """
        if self.flash_mode and visual_features is None and pixel_values is not None:
            inputs_embeds, attention_mask = self.compressed_inputs(pixel_values, input_ids, attention_mask)
        else:
            if visual_features is None and pixel_values is not None:
                visual_features = self.extract_feature(pixel_values)
            inputs_embeds = self.get_input_embeddings()(input_ids)
            inputs_embeds = self.place_features(inputs_embeds, input_ids, visual_features)
        generate_kwargs.setdefault("use_cache", True)
        stops = self.stop_token_ids()
        if generation_config is None and stops:
            generate_kwargs.setdefault("eos_token_id", stops)
        # Given none, 4.37 begins with a beginning-of-text token of its own, and returns it among the new ones.
        no_ids = torch.empty(inputs_embeds.shape[0], 0, dtype=torch.long, device=inputs_embeds.device)
        return self.language_model.generate(
            inputs=no_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            generation_config=generation_config,
            output_hidden_states=output_hidden_states,
            **generate_kwargs,
        )


def share_attention(config):
    """Gives both parts of an `InternVLChatConfig` the attention chosen for the whole.

    A part without SDPA in the installed release (Phi-3 in 4.44, CLIP in 4.37) keeps its own default.
    """
    attention = config._attn_implementation
    is_own = config.vision_config.model_type == InternVisionConfig.model_type
    vision_class = InternVisionModel if is_own else MODEL_MAPPING[type(config.vision_config)]
    llm_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.llm_config)]
    for part, part_class in ((config.vision_config, vision_class), (config.llm_config, llm_class)):
        if attention != "sdpa" or part_class._supports_sdpa:
            part._attn_implementation = attention


def make_projector(config):
    """`mlp1` of an `InternVLChatConfig`; `ValueError` for an unknown or impossible `projector_type`."""
    kind = getattr(config, "projector_type", PROJECTOR_TYPES[0])
    vision_width = projector_input_width(config.vision_config.hidden_size, config.downsample_ratio, kind)
    llm_width = config.llm_config.hidden_size
    layers = [nn.Linear(vision_width, llm_width), nn.GELU(), nn.Linear(llm_width, llm_width)]
    if kind == "pixel_shuffle_mlp":
        return nn.Sequential(nn.LayerNorm(vision_width), *layers)
    if kind not in PROJECTOR_TYPES:
        raise ValueError(f"config.json: projector_type = {kind!r}; legal are {', '.join(PROJECTOR_TYPES)}")
    if kind == "mlp" and config.downsample_ratio != 1:
        raise ValueError(
            f"config.json: projector_type 'mlp' merges no patches, so downsample_ratio must be 1, not "
            f"{config.downsample_ratio}"
        )
    return nn.Sequential(*layers)


def next_token_loss(logits, labels):
    """Mean cross entropy in float32 of predicting `labels` [B, S] one step ahead; 0 if all labels are ignored."""
    logits = logits[:, :-1].float().flatten(0, 1)
    labels = labels[:, 1:].to(logits.device).flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
