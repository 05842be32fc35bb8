"""XTuner's configs of LLaVA models (``LLaVAModel``): a CLIP or SigLIP tower, an MLP, an LLM."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..planning.published import ENCODERS, LLMS, Part, build_command
from ..settings import ConfigError
from .xtuner_config import TEMPLATES, XTunerConfig, as_list, short

_TOWERS = {part.name: part for part in ENCODERS.values() if part.config["model_type"] != "intern_vit_6b"}
_KNOWN_LLMS = {part.name for part in LLMS.values()}
_PARTS = "llm visual_encoder freeze_llm freeze_visual_encoder llm_lora visual_encoder_lora pretrained_pth"
_OF_LLM = "pretrained_model_name_or_path trust_remote_code torch_dtype quantization_config"
_BY_DEFAULT = {"visual_select_layer": -2, "projector_depth": 2, "use_activation_checkpointing": True}
_4_BITS = {
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_use_double_quant": True,
    "llm_int8_threshold": 6.0,  # of 8 bits, which these are not
    "llm_int8_has_fp16_weight": False,
}


class LlavaConfig(XTunerConfig):
    """The values of a LLaVA config."""

    model_type = "LLaVAModel"
    dataset_type = "LLaVADataset"

    def __init__(self, path: str, cfg: Mapping[str, Any]):
        super().__init__(path, cfg)
        key = "pretrained_model_name_or_path"
        found = re.search(r"_gpu(\d+)(_|$)", Path(path).stem)
        self.processes = int(found[1]) if found else self.processes
        self.llm_name, self.tower_name = (self.section("model", part, key) for part in ("llm", "visual_encoder"))

    def quantized(self) -> tuple[str, ...]:
        """The LLM where it is held in 4 bits; frozen or with LoRA."""
        llm = self.model["llm"]
        self.leave(
            "model.llm",
            llm,
            ["pretrained_model_name_or_path", "trust_remote_code", "torch_dtype", "quantization_config"],
        )
        settings = llm.get("quantization_config")
        if not settings:
            return ()
        if not settings.get("load_in_4bit"):
            raise ConfigError(
                f"config {self.path}: model.llm.quantization_config holds no 4 bits; set load_in_4bit=True"
            )
        if not self.model.get("freeze_llm"):
            raise ConfigError(f"config {self.path}: 4-bit weights don't train; set freeze_llm=True, with llm_lora")
        usual = [key for key, value in _4_BITS.items() if settings.get(key, value) == value]
        read = [*usual, "bnb_4bit_quant_type", "bnb_4bit_compute_dtype"]
        self.leave("model.llm.quantization_config", settings, read)
        return ("llm",)

    @property
    def tower(self) -> Part:
        """The vision encoder's row.

        Raises:
            ConfigError: It has none.
        """
        if self.tower_name not in _TOWERS:
            raise ConfigError(
                f"config {self.path}: model.visual_encoder {self.tower_name} is not known here; use one of "
                f"{', '.join(_TOWERS)}"
            )
        return _TOWERS[self.tower_name]

    @property
    def num_image_tokens(self) -> int:
        """Tokens of an image: one per patch."""
        return (self.tower.config["image_size"] // self.tower.config["patch_size"]) ** 2

    def base(self, given: str | None) -> tuple[str, tuple[str, ...]]:
        usual = [key for key, value in _BY_DEFAULT.items() if self.model.get(key, value) == value]
        self.leave("model", self.model, [*_PARTS.split(), *usual, "visual_select_layer", "projector_depth"])
        if (depth := self.model.get("projector_depth", 2)) != 2:
            raise ConfigError(f"config {self.path}: model.projector_depth={depth}; projectors here have 2 layers")
        if self.llm_name not in _KNOWN_LLMS:
            self.advice.append(f"model.llm {self.llm_name}: build_base_model.py says whether it can be read")
        stage_1 = self.model.get("pretrained_pth")
        if given:
            return os.path.abspath(given), (os.path.abspath(given),)
        return self.exported(stage_1) if stage_1 else self.assembled()

    def assembled(self) -> tuple[str, tuple[str, ...]]:
        """A base of its parts, with a fresh projector."""
        out = os.path.abspath(f"models/LLaVA-{Path(self.llm_name).name}")
        layer = self.model.get("visual_select_layer", -2)
        options = f" --template {self.template()}" + (f" --select-layer {layer}" if layer != -2 else "")
        command = build_command(self.tower.name, self.llm_name, options, out)
        if not Path(out).is_dir():
            self.advice.append(f"base: make it with `{command}`, or give --base")
        return out, (f"{out}:", command)

    def exported(self, checkpoint: str) -> tuple[str, tuple[str, ...]]:
        """The export of stage 1, which another config trains; XTuner names the folder of a run after its config."""
        stem = Path(checkpoint).parent.name
        out = os.path.abspath(f"exports/{stem}")
        command = f"python tools/convert_to_official.py {stem}.py CHECKPOINT {out}"
        self.note(
            f"pretrained_pth={checkpoint}: import and train {stem} first, then export it; a projector that XTuner has "
            "trained goes into a base with build_base_model.py --projector"
        )
        return out, (f"{out}, the exported stage 1:", command)

    def template(self) -> str:
        """Our name of the prompt's template.

        Raises:
            ConfigError: No template of ours writes such prompts.
        """
        dataset = self.section("train_dataloader", "dataset")
        parts = dataset.get("datasets") or [dataset]
        names = [(part.get("template_map_fn") or {}).get("template") for part in parts]
        for name in names:
            if str(name) not in TEMPLATES:
                raise ConfigError(
                    f"config {self.path}: {self.llm_name} is prompted with {short(name)}, which no template in "
                    f"xtuner_plugins/hub/conversation.py writes; take an LLM with {', '.join(TEMPLATES)}"
                )
        if len({str(name) for name in names}) > 1:
            self.note(f"template {short(names[0])} for every file; {short(names[1:])} is not carried over")
        return TEMPLATES[str(names[0])]

    def files(self, part: Mapping[str, Any]) -> tuple[list, list, list]:
        read = "data_path image_folder tokenizer image_processor template_map_fn max_length pad_image_to_square".split()
        known_map = str(part.get("dataset_map_fn")) == "llava_map_fn"
        self.leave("dataset", part, [*read, *(["dataset_map_fn"] if known_map else [])])
        paths = as_list(part.get("data_path") or [])
        if not paths:
            raise ConfigError(f"config {self.path}: a LLaVADataset without data_path; give the annotation file")
        return paths, [part.get("image_folder")] * len(paths), [1] * len(paths)

    def data_settings(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        size, tokens = self.tower.config["image_size"], self.num_image_tokens
        for padded in sorted({bool(part.get("pad_image_to_square")) for part in parts}):
            theirs = "pads an image to a square" if padded else "crops the middle square of an image"
            self.note(f"pad_image_to_square={padded}: XTuner {theirs}; here all of it is resized to {size} x {size}")
        length = self.common(parts, "max_length", 2048)
        self.note(f"max_length: XTuner counts an image as 1 token, so text alone may be {tokens} tokens longer here")
        self.note("system prompt: XTuner writes none; here it is the template's own, if it has one")
        if self.template() == "vicuna_v1.1":
            self.note("template vicuna: XTuner ends turns with a line break; here with </s>, as Vicuna was trained")
        return {
            "max_tiles": 1,  # the whole image
            "max_length": length + tokens,
            "template": self.template(),
        }
