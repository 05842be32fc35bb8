"""The preprocessing that a model was trained with; saved in every checkpoint and every export.

::

    {"tile_size": 448, "tokens_per_tile": 256,
     "datasets": [{"name": "train", "min_tiles": 1, "max_tiles": 6, "use_thumbnail": true, "template": "Hermes-2",
                   "system_message": "You are ..."}],
     "token_rules": 2, "tile_sharing": "equal", "max_length": 4096, "image_mean": [...], "image_std": [...],
     "special_tokens": {"<img>": 151665, ...}, "pillow_version": "12.1.0", "resize_rule": "...", "versions": {...},
     "exported": {"min_tiles": 1, "max_tiles": 6, "use_thumbnail": true, "template": "Hermes-2", ...}}

Only exports have ``exported``, the settings in their ``config.json``. A model directory has one template and one set of
tile limits, a mixture may have several; `choose` selects one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtuner_plugins.hub.constants import IMAGE_TOKENS, IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.hub.conversation import Conversation, get_conv_template, own_system

KEY = "preprocessing"  # in a training checkpoint
FILE = "preprocessing.json"  # in an export
TOKEN_RULES = 2  # raised when the same texts get other ids
SETTINGS = ("min_tiles", "max_tiles", "use_thumbnail", "template")


class PreprocessingError(ValueError):
    """The training's preprocessing doesn't fit a config or a model directory; the message names both."""


@dataclass(frozen=True)
class Choice:
    """The tile limits, template and system message of a model directory; the first four as settings of a dataset."""

    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    template: str
    system_message: str | None

    @classmethod
    def of(cls, fields: Mapping) -> Choice:
        """From a dict with the fields; locks of earlier versions have no system message but the template's."""
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
    """The fields of an official ``config.json`` that give a conversation's system message (see `own_system`).

    Args:
        conversation: Template and system message.
        base: The fields that they are laid over.
    """
    own, base = conversation.system_message, base or {}
    if not own_system(base) and own == get_conv_template(conversation.name).system_message:
        return {}
    if own is None:
        return {"no_system_message": True}
    return {"system_message": own} | ({"no_system_message": False} if base.get("no_system_message") else {})


def check_same(trained: Mapping, now: Mapping, where: str, remedy: str) -> None:
    """Raises where a config (or a live dataset) has other tiles or prompts than a checkpoint's training.

    Raises:
        PreprocessingError: Names both.
    """
    complaints = []
    for key in ("tile_size", "special_tokens", "image_mean", "image_std"):
        if key in trained and key in now and trained[key] != now[key]:
            complaints.append(f"{key}={trained[key]} there, {now[key]} here")
    if _rules(trained) != _rules(now):
        complaints.append(f"{_list(_rules(trained))} there, {_list(_rules(now))} here")
    if complaints:
        raise PreprocessingError(f"{where} was trained with another preprocessing: {'; '.join(complaints)}; {remedy}")


def check_token_rules(trained: Mapping, tokenizer, where: str) -> None:
    """Raises where a training's texts had other ids than this version gives them.

    Before rule 2, each piece of text was encoded as the start of a text, and Vicuna's answers had no space in front.
    Most tokenizers give the same ids either way, but those that write a space before a text don't.

    Args:
        trained: The preprocessing of the training.
        tokenizer: The tokenizer of its base, as transformers loads it.
        where: What was trained so.

    Raises:
        PreprocessingError: Names the template whose prompts had other ids.
    """
    if trained.get("token_rules", 1) == TOKEN_RULES:
        return
    from xtuner_plugins.hub.prompts import PromptEncoder, prompt_parts

    for template in sorted({dataset["template"] for dataset in trained["datasets"]}):
        conversation, encoder = get_conv_template(template), PromptEncoder(tokenizer, 1, IMAGE_TOKENS)
        for role, text in zip(conversation.roles * 2, ("<image>\nA", "B", "C", "D"), strict=True):
            conversation.append_message(role, text)
        now = encoder.encode(prompt_parts(conversation, [1]))
        conversation.answer_prefix, encoder.rules.anchors = "", dict.fromkeys(encoder.rules.anchors, ("", 0))
        if encoder.encode(prompt_parts(conversation, [1])) != now:
            raise PreprocessingError(
                f"{where} was trained by an older version, which gave prompts of template {template} other token ids "
                "with this tokenizer than engines and this version do; go on with the version that wrote it, or train "
                "anew"
            )


def choose(trained: Mapping, *, template: str | None = None, max_tiles: int | None = None) -> tuple[Choice, str | None]:
    """Selects the template and the tile limits that a model directory gets.

    Of several templates the caller must name one. Of several tile limits among the files with that template, the ones
    with ``max_tiles`` are taken, by default those with most tiles.

    Returns:
        The choice, and a note for the user (or None).

    Raises:
        PreprocessingError: Several templates and none named, a template or ``max_tiles`` that was not trained with, or
            a mean and std that a model directory can't express.
    """
    expected = [list(IMAGENET_MEAN), list(IMAGENET_STD)]
    pixels = [list(trained.get("image_mean", IMAGENET_MEAN)), list(trained.get("image_std", IMAGENET_STD))]
    if pixels != expected:
        raise PreprocessingError(
            f"trained with image mean {pixels[0]} and std {pixels[1]}, but every consumer of a model directory uses "
            f"{expected[0]} and {expected[1]}; train without mean and std of your own, on a base built with "
            "--image-mean and --image-std"
        )
    rules = _rules(trained)
    templates = sorted({rule.template for rule in rules})
    if template is None and len(templates) > 1:
        raise PreprocessingError(
            f"trained with several templates ({_by_template(trained)}), but a model directory has one; "
            "name it with --template"
        )
    template = template or templates[0]
    if template not in templates:
        raise PreprocessingError(f"--template {template}: trained with {_by_template(trained)} only")
    fitting = [rule for rule in rules if rule.template == template]
    if max_tiles is not None:
        wanted = [rule for rule in fitting if rule.max_tiles == max_tiles]
        if not wanted:
            raise PreprocessingError(f"--max-tiles {max_tiles}: trained with {_list(fitting)} only")
        return wanted[0], None
    chosen = max(fitting, key=lambda rule: rule.max_tiles)
    if len(fitting) == 1:
        return chosen, None
    return chosen, (
        f"trained with several rules of tiles ({_list(fitting)}); the export has the one with most: {chosen}; "
        "--max-tiles chooses another"
    )


def sharing_note(lock: Mapping) -> str | None:
    """What a user should know where a question's images got other tiles in training than serving engines give them."""
    most = lock["exported"]["max_tiles"]
    if lock.get("tile_sharing", "equal") != "equal" or most == 1:
        return None
    return f"in training several images of a record shared {most} tiles; serving engines give each of them {most}"


def exported(lock: Mapping, where: str) -> Choice:
    """The settings that an export's ``preprocessing.json`` says its config has.

    Raises:
        PreprocessingError: They are missing or unreadable.
    """
    try:
        return Choice.of(lock["exported"])
    except (KeyError, TypeError, ValueError):
        raise PreprocessingError(f"{where} does not say what was exported") from None


def check_form(lock: Any, where: str) -> dict:
    """A lock read from a file, as a dict.

    Raises:
        PreprocessingError: It isn't one.
    """
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        if _rules(lock):
            return dict(lock)
    raise PreprocessingError(f"{where} holds a preprocessing that can't be read")


def _rules(lock: Mapping) -> list[Choice]:
    """The distinct rules, in a fixed order."""
    found = {Choice.of(dataset) for dataset in lock["datasets"]}
    return sorted(
        found,
        key=lambda rule: (rule.template, str(rule.system_message), rule.max_tiles, rule.min_tiles, rule.use_thumbnail),
    )


def _list(rules: list[Choice]) -> str:
    return " and ".join(map(str, rules))


def _by_template(lock: Mapping) -> str:
    names: dict[str, list[str]] = {}
    for dataset in lock["datasets"]:
        names.setdefault(dataset["template"], []).append(str(dataset.get("name")))
    return "; ".join(f"{template}: {', '.join(files)}" for template, files in sorted(names.items()))
