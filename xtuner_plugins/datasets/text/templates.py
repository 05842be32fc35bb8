"""A record as the segments of its prompt, from the table of templates that exports ship.

Training reads the parts of a prompt from `hub/conversation.py`, as `chat` does, so a model is trained on exactly the
text that it will be prompted with. With `internvl2_5` (supervised parts underlined, `|` between segments):

    <|im_start|>system\\n|{system}|<|im_end|>\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|
    {answer}<|im_end|>|\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|{answer}<|im_end|>|\\n
    ------------------                                                                      ------------------
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...errors import RecordError, SettingError
from ...hub.conversation import Conversation, get_conv_template
from ..records.records import Medium, Record


class Segment(NamedTuple):
    """A stretch of a conversation: a text, or an image or video in its place."""

    content: str | Medium
    supervised: bool = False  # the model learns to write it
    literal: bool = False  # the template's own text, in which control tokens are tokens, not characters
    answer: bool = False  # an answer, learned or not, which no token shares with what stands before it


@dataclass(frozen=True)
class Template:
    """A template of the table, as training reads it."""

    conversation: Conversation  # without turns

    @property
    def name(self) -> str:
        """Its key in the table."""
        return self.conversation.name

    def segments(self, record: Record) -> list[Segment]:
        """The record as segments, in order.

        Raises:
            RecordError: the template has no place for the record's system message.
        """
        empty = self.conversation
        if record.system is not None and "{system_message}" not in empty.system_template:
            problem = f"template {self.name!r} has no place for a system message"
            raise RecordError("system_place", problem, "remove it or choose another template", record.source)
        system = empty.system_message if record.system is None else record.system
        around = self._around(system is not None, len(record.turns))
        segments = [around[0], Segment(system)] if system is not None else []
        for fixed, turn in zip(around[system is not None :], record.turns, strict=False):  # one more follows the last
            segments.append(fixed)
            if turn.role == "assistant":
                answer = empty.answer_prefix + "".join(turn.parts)
                segments.append(Segment(answer, turn.supervised, answer=True))
                segments.append(Segment(empty.stop_token, turn.supervised, literal=True))
            else:
                segments += map(Segment, turn.parts)
        segments.append(around[-1])
        return segments

    def _around(self, has_system: bool, num_turns: int) -> list[Segment]:
        """The template's own texts: before each message, without the token that ends an answer, and after the last."""
        empty, texts, skipped = self.conversation, [""], 0
        messages = [(empty.roles[number % 2], "") for number in range(num_turns)]
        bare = replace(empty, system_message="" if has_system else None, messages=messages)
        for kind, text in bare.get_parts():
            if kind == "template":
                texts[-1] += text[skipped:]
            else:
                texts.append("")
            skipped = len(empty.stop_token) if kind == "answer" else 0
        return [Segment(text, literal=True) for text in texts]


def get_template(name: str, own: Mapping[str, str | None] | None = None) -> Template:
    """The template `name`.

    Args:
        name: its key in the table.
        own: a model's system message (see `own_system`).

    Raises:
        SettingError: no such template.
    """
    try:
        return Template(get_conv_template(name, **(own or {})))
    except ValueError as error:
        raise SettingError("template", str(error), "correct 'template'") from None
