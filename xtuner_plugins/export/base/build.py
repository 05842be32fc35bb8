"""Assembles a vision tower and a language model to an official InternVL directory, the base of a training."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ...dtypes import resolve_dtype
from ...families import EMBEDDING, FLASH, HEAD, PARTS, LLMFamily, encoder_family, llm_family
from ...hub.constants import ADDED_TOKENS, PROJECTOR_TYPES
from ...hub.conversation import TEMPLATES, Conversation, get_conv_template
from ...weights import model_view, official, preprocessing, tokenizer_files
from ...weights.lazy import Joined, LazyTensor, MemoryTensor, cast
from ...weights.loader import check_model
from ...weights.reading import CheckpointError, read_json
from ...weights.staging import check_target, staged_directory
from ...weights.writer import write_weights
from ..draft import write_files
from . import projectors, towers

HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.bin", "*.jinja"]  # never *.py


@dataclass
class LLMPart:
    """A language model, read but not loaded.

    Attributes:
        config: its own.
        family: its row.
        tokenizer: with the nine tokens.
        tensors: without prefix; where embedding and head are tied, they are the same object.
        num_new_tokens: how many of the nine were new.
        conversation: template and system message that it was trained with, as far as its directory tells.
    """

    config: dict
    family: LLMFamily
    tokenizer: object
    tensors: dict[str, LazyTensor]
    num_new_tokens: int
    conversation: Conversation | None

    @property
    def is_tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.tensors[HEAD] is self.tensors[EMBEDDING]


def build_base(
    vision: str | Path,
    llm: str | Path,
    out: str | Path,
    *,
    template: str | None = None,
    system: str | None = None,
    max_tiles: int | None = None,
    dtype: str = "bfloat16",
    projector: str | Path | None = None,
    projector_type: str | None = None,
    select_layer: int | None = None,
    tile_size: int | None = None,
    flash: bool = False,
    seed: int = 0,
    force: bool = False,
) -> dict:
    """Writes an official-format directory from a vision tower, a language model and a projector.

    * Vision: see `read_vision`. What isn't an InternViT runs with our own model code only.
    * Language model: the nine tokens are appended. Embedding and head are cut to the tokenizer's size (Qwen3 keeps its
      padding rows, as its releases do); every new row is the mean of the old ones. A tied head is stored as a copy.
    * Projector: from a file, or fresh: LayerNorm at ones and zeros; weights and biases of linear layers uniform in
      ±1/sqrt(fan_in), PyTorch's default, with which the published recipes start.

    Args:
        vision: directory, or a hub name when no such directory exists.
        llm: directory, or a hub name; a model directory gives its language model.
        out: directory to write.
        template: conversation template; None takes the language model's own with its system message, or if the table
            of templates can't express that, the family's default.
        system: system message in place of the template's; '' leaves out the system turn.
        max_tiles: tiles per image without the thumbnail; None is 12, or 1 with ``mlp`` and ``bilinear_mlp``.
        dtype: of the stored weights, as for `resolve_dtype`.
        projector: model directory, or file with ``mlp1.*`` (or ``0.weight`` ...); None for a fresh one.
        projector_type: ``pixel_shuffle_mlp`` (InternVL's), ``mlp`` (LLaVA's, no merging of patches) or
            ``bilinear_mlp`` (the patch grid halved bilinearly); None takes that of the tower's family.
        select_layer: as for `read_vision`, like ``tile_size``.
        tile_size: side of a tile in pixels, for DINOv2 and DINOv3.
        flash: add the second projector of InternVL3.5-Flash, made of the projector, and its router, fresh.
        seed: of what is fresh.
        force: replace an existing ``out``.

    Returns:
        A summary: ``out``, ``num_parameters``, ``num_bytes``, ``vocab_size``, ``num_new_tokens``, ``num_image_token``,
        ``projector`` (its source), ``template``, ``parts`` (parameters by part), ``notes`` (lines for the user).

    Raises:
        UnknownFamilyError: an encoder or LLM without a row in ``families``.
        CheckpointError: a part is missing, of the wrong kind or incomplete; ``out`` exists; the disk is too full.
        ValueError: an argument out of range.
    """
    stored_dtype = resolve_dtype(dtype)
    if max_tiles is not None and not 1 <= max_tiles <= 128:
        raise ValueError(f"max_tiles = {max_tiles} makes no sense; choose 1 to 128 (released models: 12)")
    out = check_target(out, force=force, inputs={"vision tower": vision, "language model": llm, "projector": projector})
    tower = local_directory(vision, "vision tower")
    vision_part = towers.read_vision(tower, select_layer=select_layer, tile_size=tile_size)
    llm_part = read_llm(local_directory(llm, "language model"))
    conversation = _choose_conversation(llm_part, template, system)
    config = make_config(vision_part, llm_part, conversation, max_tiles, dtype, projector_type)
    num_rows = config["llm_config"]["vocab_size"]
    tensors = {**vision_part.tensors, **projectors.projector_tensors(config, projector, seed)}
    if flash:
        config |= FLASH
        tensors |= projectors.flash_tensors(config, tensors, seed)
    tensors |= {f"language_model.{name}": tensor for name, tensor in resized_llm(llm_part, num_rows).items()}
    check_model(config, tensors, "the assembled model")
    tensors = {name: cast(tensor, stored_dtype, finite=name) for name, tensor in tensors.items()}
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    with staged_directory(out, config, num_bytes) as stage:
        write_files(official, stage, config, llm_part.tokenizer)
        write_weights(stage, tensors)
    counts = Counter()
    for name, tensor in tensors.items():
        counts[name.partition(".")[0]] += tensor.numel
    return {
        "out": str(out),
        "num_parameters": counts.total(),
        "num_bytes": num_bytes,
        "vocab_size": num_rows,
        "num_new_tokens": llm_part.num_new_tokens,
        "num_image_token": official.num_image_tokens(config),
        "projector": str(projector) if projector else f"fresh, seed {seed}",
        "template": conversation.name,
        "parts": {key: counts[part.attribute] for key, part in PARTS.items()},
        "notes": _notes(config, llm_part, conversation),
    }


def _notes(config: dict, llm: LLMPart, conversation: Conversation) -> list[str]:
    """Lines on the prompt, the head, and who runs the directory, if not all."""
    notes = tokenizer_files.describe_prompt(llm.tokenizer, conversation)
    if llm.is_tied:
        size = config["llm_config"]["vocab_size"] * config["llm_config"]["hidden_size"]
        notes.append(f"the format stores a head beside the tied embedding: {size / 1e6:,.1f} M parameters more")
    encoder, projector_type = encoder_family(config["vision_config"]), config.get("projector_type")
    if projector_type or not encoder.is_intern_vit:
        what = f"projector type {projector_type}" if encoder.is_intern_vit else encoder.architecture
        llava = encoder.llava and projector_type == "mlp"
        elsewhere = "; --format llava exports it for other programs" if llava else ""
        told = "this directory runs with its own model code only (trust_remote_code, VLMEvalKit)"
        notes.append(f"{what}: {told}{elsewhere}")
    if preprocessing.system_fields(conversation):
        others = "programs with an own table of templates (the official repository, LMDeploy)"
        notes.append(f"the system message is this model's own; {others} prompt with that of {conversation.name}")
    if config.get("flash_mode"):
        most = f"about {1 - config['flash_relative_threshold']:.0%} of the tiles of a request at most"
        notes.append(f"Flash compresses {most}, and never a tile that is alone")
    return notes


def local_directory(name: str | Path, role: str) -> Path:
    """A local directory, or a hub model that is downloaded (weights, JSON and tokenizer files only, no code).

    Raises:
        CheckpointError: neither a directory nor a hub model that can be downloaded.
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise CheckpointError(f"{role}: {path} is no directory, nor a hub name like org/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=HUB_PATTERNS))
    except Exception as error:
        told = f"{role}: there is no directory {text}, and no hub model of that name can be fetched"
        raise CheckpointError(f"{told} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None


def read_llm(directory: Path) -> LLMPart:
    """A language model, bare or inside a model directory, with its tokenizer, the nine tokens added."""
    if "vision_config" in read_json(directory / "config.json"):
        view, prefix = model_view.open_model(directory), "language_model."
        config, known = view.config["llm_config"], view.config["template"] in TEMPLATES
        conversation = tokenizer_files.conversation_of(view.config) if known else None
        tensors = {k.removeprefix(prefix): t for k, t in view.tensors.items() if k.startswith(prefix)}
    else:
        (config, tensors), conversation = model_view.open_language_model(directory), None
    family = llm_family(config, f"language model: {directory}")
    if EMBEDDING not in tensors:
        raise CheckpointError(f"language model: {directory} has no {EMBEDDING}")
    if config.get("tie_word_embeddings") or HEAD not in tensors:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        ties_by_default = CONFIG_MAPPING[config["model_type"]]().tie_word_embeddings
        if not config.get("tie_word_embeddings", ties_by_default):
            raise CheckpointError(f"language model: {directory} has no {HEAD}, but its config says that it isn't tied")
        tensors[HEAD] = tensors[EMBEDDING]
    tokenizer = tokenizer_files.load_tokenizer(directory, complete=False)
    conversation = conversation or tokenizer_files.own_conversation(tokenizer)
    num_new = tokenizer_files.add_tokens(tokenizer, ADDED_TOKENS)
    return LLMPart(config, family, tokenizer, tensors, num_new, conversation)


def _choose_conversation(llm: LLMPart, template: str | None, system: str | None) -> Conversation:
    """Template and system message of a base; arguments as for ``build_base``."""
    own = llm.conversation
    found = own if own and template in (None, own.name) else get_conv_template(template or llm.family.template)
    if tokenizer_files.token_id(llm.tokenizer, found.stop_token) is None:
        stops = {name: get_conv_template(name).stop_token for name in TEMPLATES}
        fitting = [name for name, stop in stops.items() if tokenizer_files.token_id(llm.tokenizer, stop) is not None]
        told = f"{found.name} ends answers with {found.stop_token}, no token of this language model's tokenizer"
        raise CheckpointError(f"template {told}; its tokens fit --template {' or '.join(fitting) or '(none)'}")
    return found if system is None else replace(found, system_message=system or None)


def resized_llm(llm: LLMPart, num_rows: int) -> dict[str, LazyTensor]:
    """The LLM's tensors, with ``num_rows`` rows of embedding and head: the old, their mean for new tokens, padding."""
    tensors, used = dict(llm.tensors), tokenizer_files.num_token_rows(llm.tokenizer)
    num_old = used - llm.num_new_tokens
    for name in (EMBEDDING,) if llm.is_tied else (EMBEDDING, HEAD):
        matrix = tensors[name]
        if matrix.shape[0] < num_old:
            told = f"{name} has {matrix.shape[0]} rows, fewer than the {num_old} tokens of the tokenizer"
            raise CheckpointError(f"{told}: it belongs to another model")
        old = matrix.rows(0, num_old)
        total = sum(old.read(*span).double().sum(0) for span in old.spans())
        new = MemoryTensor((total / num_old).to(matrix.dtype).expand(llm.num_new_tokens, -1))
        padding = [matrix.rows(used, num_rows)] if num_rows > used else []
        tensors[name] = Joined([old, new, *padding])
    return tensors | ({HEAD: tensors[EMBEDDING]} if llm.is_tied else {})


def make_config(
    part: towers.VisionPart,
    llm: LLMPart,
    conversation: Conversation,
    max_tiles: int | None,
    dtype: str,
    projector_type: str | None,
) -> dict:
    """The official config of the two parts; arguments as for ``build_base``."""
    projector_type = projector_type or encoder_family(part.config).projector_type
    if projector_type not in PROJECTOR_TYPES:
        raise ValueError(f"projector_type {projector_type!r} is unknown; choose one of {', '.join(PROJECTOR_TYPES)}")
    most = max_tiles or (12 if projector_type == PROJECTOR_TYPES[0] else 1)
    named = {"template": conversation.name, "projector_type": projector_type, "select_layer": part.select_layer}
    fields = _llm_fields(part, llm, dtype)
    config = official.make_config(part.config, fields, dtype=dtype, max_tiles=most, **named)
    return config | preprocessing.system_fields(conversation)


def _llm_fields(part: towers.VisionPart, llm: LLMPart, dtype: str) -> dict:
    """The ``llm_config`` of a new base: its own fields, completed by transformers, with the rows that it gets."""
    from ...hub.configuration_internvl_chat import InternVLChatConfig

    rows = tokenizer_files.num_token_rows(llm.tokenizer)
    if llm.family.keeps_padding:
        rows = max(rows, llm.tensors[EMBEDDING].shape[0])
    dropped = ("transformers_version", "dtype")
    fixed = {"architectures": [llm.family.architecture], "vocab_size": rows, "torch_dtype": dtype}
    source = {key: value for key, value in llm.config.items() if key not in dropped} | fixed
    whole = InternVLChatConfig(vision_config=part.config, llm_config=source, torch_dtype=dtype)
    complete = whole.to_dict()["llm_config"]
    fields = {key: complete.get(key) for key in (*llm.family.fields, *source)} | fixed
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[key] = getattr(llm.tokenizer, key) if fields.get(key) is None else fields[key]
    return {**fields, "model_type": llm.family.model_type, "use_cache": True}
