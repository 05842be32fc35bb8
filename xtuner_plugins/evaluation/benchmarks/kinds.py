"""The benchmarks that are known: metric, prompt, and how their files are recognized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...datasets.errors import SettingError

FIELDS = ("question", "hint", "choices")
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "{hint}\n{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
_LETTER_ZH = "{hint}\n{question}\n{choices}\n请直接回答选项字母。"
_HAN = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Kind:
    """A benchmark.

    Attributes:
        metric: The published one; None takes `multiple_choice` for items with choices and `exact_match` otherwise.
        prompt: The text that is asked, of `FIELDS` in braces; a line whose fields are empty is left out.
        prompt_zh: The same for questions in Chinese; None takes `prompt`.
        max_tiles: Most tiles per image in the published evaluation.
        stems: How names of its TSV files begin, in small letters.
    """

    metric: str | None
    prompt: str
    prompt_zh: str | None = None
    max_tiles: int | None = 6
    stems: tuple[str, ...] = ()

    def prompt_for(self, text: str) -> str:
        """The prompt in the language of a text."""
        return self.prompt_zh if self.prompt_zh and _HAN.search(text) else self.prompt


# Prompts are those of OpenGVLab/InternVL (internvl_chat/eval/*/evaluate_*.py), for AI2D and MMStar those of
# VLMEvalKit's wrapper (vlmeval/vlm/internvl/), with which InternVL's authors evaluate them. POPE's is in the questions
# of the file that the script reads (llava_pope_test.jsonl). Tiles are those of the scripts' pages and of the wrapper.
KINDS: dict[str, Kind] = {
    "mmbench": Kind("multiple_choice", _LETTER, _LETTER_ZH, stems=("mmbench", "ccbench")),
    "mmstar": Kind("multiple_choice", _LETTER, _LETTER_ZH, stems=("mmstar",)),
    "ai2d": Kind("multiple_choice", _LETTER, _LETTER_ZH, stems=("ai2d",)),
    "scienceqa": Kind("multiple_choice", _LETTER, _LETTER_ZH, stems=("scienceqa",)),
    "pope": Kind("yes_no", "{question}\n" + _SHORT, stems=("pope",)),
    "textvqa": Kind("vqa_accuracy", "{question} " + _SHORT, stems=("textvqa",)),
    "docvqa": Kind("anls", "{question} " + _SHORT, max_tiles=18, stems=("docvqa",)),
    "chartqa": Kind("relaxed_accuracy", "{question} " + _SHORT, max_tiles=12, stems=("chartqa",)),
    "own": Kind(None, "{hint}\n{question}\n{choices}", max_tiles=None),
}


def check_kind(name: str) -> None:
    """Refuse an unknown kind.

    Raises:
        SettingError: It is none of `KINDS`.
    """
    if name not in KINDS:
        raise SettingError("kind", f"kind {name!r} is unknown", f"it is one of {', '.join(KINDS)}")


def check_prompt(prompt: str) -> None:
    """Refuse a prompt of one's own that doesn't ask the question.

    Raises:
        SettingError: It lacks `{question}`.
    """
    if "{question}" not in prompt:
        raise SettingError(
            "prompt", f"the prompt {prompt[:80]!r} has no {{question}}", "write {question} where the question belongs"
        )


def fill(prompt: str, fields: Mapping[str, str]) -> str:
    """The prompt with its fields; lines whose fields are all empty are left out, and no suffix is written twice."""
    lines = []
    for line in prompt.split("\n"):
        names = [name for name in FIELDS if f"{{{name}}}" in line]
        if names and not any(fields[name] for name in names):
            continue
        for name in names:
            line = line.replace(f"{{{name}}}", fields[name])
        lines.append(line)
    text, question = "\n".join(lines), fields["question"].rstrip()
    suffix = prompt.split("{question}")[-1].strip()
    return question if suffix and question.endswith(suffix) and text.startswith(question) else text
