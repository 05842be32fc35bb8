"""XTuner's configs of published InternVL models (``InternVL_V1_5``)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..planning.published import BASES
from ..settings import ConfigError
from .xtuner_config import TEMPLATES, XTunerConfig, as_list, short

_COLUMNS = {"data_paths": (), "image_folders": None, "repeat_times": 1}  # one value per file; with XTuner's defaults


class InternVLConfig(XTunerConfig):
    """The values of an InternVL config."""

    model_type = "InternVL_V1_5"
    dataset_type = "InternVL_V1_5_Dataset"

    def __init__(self, path: str, cfg: Mapping[str, Any]):
        super().__init__(path, cfg)
        self.known = next((b for b in BASES.values() if b.hub and b.hub == self.model.get("model_path")), None)

    def quantized(self) -> tuple[str, ...]:
        keys = {"visual_encoder": "quantization_vit", "llm": "quantization_llm"}
        return tuple(part for part, key in keys.items() if self.model.get(key))

    def base(self, given: str | None) -> tuple[str, tuple[str, ...]]:
        read = "model_path freeze_llm freeze_visual_encoder llm_lora visual_encoder_lora quantization_llm".split()
        self.leave("model", self.model, [*read, "quantization_vit"])
        path = self.section("model", "model_path")
        self.directory = os.path.abspath(given or (self.known.path if self.known else path))
        if given or Path(self.directory).is_dir():
            return self.directory, (self.directory,)
        command = f"hf download {path} --local-dir {self.directory}"
        self.advice.append(f"model_path={path}: get it with `{command}`, or give --base")
        return self.directory, (f"{self.directory}:", command)

    def files(self, part: Mapping[str, Any]) -> tuple[list, list, list]:
        self.leave("dataset", part, "model_path data_paths image_folders repeat_times template max_length".split())
        columns = [as_list(part.get(key, other)) for key, other in _COLUMNS.items()]
        columns[1:] = [column * len(columns[0]) if len(column) == 1 else column for column in columns[1:]]
        if len({len(column) for column in columns}) != 1:
            counts = ", ".join(f"{len(column)} {key}" for key, column in zip(_COLUMNS, columns, strict=True))
            raise ConfigError(f"config {self.path}: {counts}; give one for each file")
        return tuple(columns)

    def data_settings(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        settings = {"max_length": self.common(parts, "max_length", 8192)}
        template = self.common(parts, "template", None)
        ours = TEMPLATES.get(str(template))
        if ours is None:
            self.note(f"template {short(template)} is not carried over; the base's own is used")
        elif self.known is None or self.known.template != ours:
            settings["template"] = ours
        self.note("system prompt: XTuner writes one that names InternLM or Phi-3; here it is the template's own")
        return settings | ({} if self.known else self.tiles())

    def tiles(self) -> dict[str, Any]:
        """``max_tiles`` of a base without a row in the table: its own one, where it is there to be read."""
        file = Path(self.directory, "config.json")
        if not file.is_file():
            self.note(f"max_tiles=12: no table knows {Path(self.directory).name}; set its max_dynamic_patch")
            return {}
        fields = json.loads(file.read_text(encoding="utf-8"))
        tiles = fields.get("max_dynamic_patch", 1) if fields.get("dynamic_image_size") else 1
        return {"max_tiles": tiles}
