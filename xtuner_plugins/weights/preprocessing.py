"""The preprocessing that a model was trained with; saved in every checkpoint and every export.

::

    {"tile_size": 448, "tokens_per_tile": 256,
     "datasets": [{"name": "train", "min_tiles": 1, "max_tiles": 6, "use_thumbnail": true, "template": "Hermes-2",
                   "system_message": "You are ..."}],
     "token_rules": 2, "max_length": 4096, "image_mean": [...], "image_std": [...],
     "special_tokens": {"<img>": 151665, ...}, "pillow_version": "12.1.0", "resize_rule": "...", "versions": {...},
     "exported": {"min_tiles": 1, "max_tiles": 6, "use_thumbnail": true, "template": "Hermes-2", ...}}

Only exports have ``exported``, the settings in their ``config.json``, which `choose` selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..hub.constants import IMAGENET_MEAN, IMAGENET_STD
from ..hub.conversation import Conversation, get_conv_template, own_system
from .errors import CheckpointError, from_outside

KEY = "preprocessing"  # in a training checkpoint
FILE = "preprocessing.json"  # in an export
TOKEN_RULES = 2  # raised when the same texts get other ids
SETTINGS = ("min_tiles", "max_tiles", "use_thumbnail", "template")


@dataclass(frozen=True)
class Choice:
    """The tile limits, template and system message of a model directory; the first four as settings of a dataset."""

    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    template: str
    system_message: str | None

    def __post_init__(self):
        texts = (self.template, self.system_message or "")
        if {type(self.min_tiles), type(self.max_tiles)} != {int} or not all(isinstance(each, str) for each in texts):
            raise TypeError(f"{self!r} has tile limits or texts of another type")

    @classmethod
    def of(cls, fields: Mapping) -> Choice:
        """From a dict with the fields; without a system message it is the template's."""
        default = get_conv_template(fields["template"]).system_message
        return cls(*(fields[key] for key in SETTINGS), fields.get("system_message", default))

    @property
    def conversation(self) -> Conversation:
        """Template and system message, without turns."""
        return get_conv_template(self.template, system_message=self.system_message)

    def __str__(self) -> str:
        thumbnail = "and" if self.use_thumbnail else "without"
        own = f" with system message {self.system_message!r}" if system_fields(self.conversation) else ""
        return f"{self.min_tiles} to {self.max_tiles} tiles {thumbnail} thumbnail, {self.template}{own}"

    def config_fields(self, base: Mapping) -> dict[str, Any]:
        """The fields of an official ``config.json``, laid over those of ``base``."""
        return {
            **system_fields(self.conversation, base),
            "dynamic_image_size": True,
            "min_dynamic_patch": self.min_tiles,
            "max_dynamic_patch": self.max_tiles,
            "use_thumbnail": self.use_thumbnail,
            "template": self.template,
        }


def system_fields(conversation: Conversation, base: Mapping | None = None) -> dict[str, Any]:
    """The fields that give a conversation's system message (see `own_system`), laid over an official config's."""
    own, base = conversation.system_message, base or {}
    if not own_system(base) and own == get_conv_template(conversation.name).system_message:
        return {}
    if own is None:
        return {"no_system_message": True}
    return {"system_message": own} | ({"no_system_message": False} if base.get("no_system_message") else {})


def checked(lock: Any, tokenizer, where: str) -> dict[str, Any]:
    """A lock read from a file whose training's texts had the ids that this version gives them.

    Before rule 2, each piece of text was encoded as the start of a text, which gives other ids where the tokenizer
    writes a space before a text, and Vicuna's answers had no space in front.

    Args:
        lock: what the file holds.
        tokenizer: of the model.
        where: the file, for messages.

    Raises:
        CheckpointError: no lock, or one of other ids.
    """
    with from_outside(f"{where}: its preprocessing"):
        first, *others = _rules(lock)
        is_vicuna = any(rule.template.startswith("vicuna") for rule in (first, *others))
    if lock.get("token_rules", 1) != TOKEN_RULES and (is_vicuna or tokenizer.tokenize("a") != ["a"]):
        told = "was trained by an older version, which gave its prompts other token ids"
        raise CheckpointError(f"{where} {told}; go on with the version that wrote it, or train anew")
    return dict(lock)


def choose(trained: Mapping, *, template: str | None = None, max_tiles: int | None = None) -> tuple[Choice, str | None]:
    """Selects the template and the tile limits that a model directory gets, which has one of each.

    Of several templates the caller must name one. Of several tile limits among the files with that template, the ones
    with ``max_tiles`` are taken, by default those with most tiles.

    Returns:
        The choice, and a note for the user (or None).

    Raises:
        CheckpointError: Several templates and none named, a template or ``max_tiles`` that was not trained with, or
            a mean and std that a model directory can't express.
    """
    for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if list(trained.get(key, usual)) != list(usual):
            told = f"trained with {key.replace('_', ' ')} {trained[key]}, but every program uses {list(usual)}"
            raise CheckpointError(f"{told}; name it in the encoder's preprocessor_config.json and build the base anew")
    rules, files = _rules(trained), [(each["template"], str(each.get("name"))) for each in trained["datasets"]]
    said = ", ".join(f"{used} ({name})" for used, name in sorted(files))
    if template is None and len({rule.template for rule in rules}) > 1:
        raise CheckpointError(f"trained with several templates ({said}); name one with --template")
    rules = [rule for rule in rules if template in (None, rule.template)]
    if not rules:
        raise CheckpointError(f"--template {template}: trained with {said} only")
    fitting, said = [rule for rule in rules if max_tiles in (None, rule.max_tiles)], " and ".join(map(str, rules))
    if not fitting:
        raise CheckpointError(f"--max-tiles {max_tiles}: trained with {said} only")
    chosen = max(fitting, key=lambda rule: rule.max_tiles)
    note = f"trained with several rules of tiles ({said}); the export has the one with most: {chosen}; --max-tiles "
    return chosen, f"{note}chooses another" if len(fitting) > 1 else None


def _rules(lock: Mapping) -> list[Choice]:
    """The distinct rules, in a fixed order."""
    return sorted({Choice.of(dataset) for dataset in lock["datasets"]}, key=repr)
