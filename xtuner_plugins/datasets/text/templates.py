"""A record as the segments of its prompt, from the table of templates that exports ship.

Training reads the parts of a prompt from `hub/conversation.py`, as `chat` does, so a model is trained on exactly the
text that it will be prompted with. With `internvl2_5` (supervised parts underlined, `|` between segments):

    <|im_start|>system\\n|{system}|<|im_end|>\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|
    {answer}<|im_end|>|\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|{answer}<|im_end|>|\\n
    ------------------                                                                      ------------------
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ...hub.conversation import Conversation, get_conv_template
from ..errors import RecordError, SettingError
from ..records.records import Medium, Record


class Segment(NamedTuple):
    """A stretch of a conversation: a text, or an image or video in its place."""

    text: str = ""
    supervised: bool = False  # the model learns to write it
    literal: bool = False  # the template's own text, in which control tokens are tokens, not characters
    medium: Medium | None = None
    answer: bool = False  # an answer, learned or not, which is tokenized on its own


@dataclass(frozen=True)
class Template:
    """A template of the table, as training reads it."""

    conversation: Conversation  # without turns

    @property
    def name(self) -> str:
        """Its key in the table."""
        return self.conversation.name

    def segments(self, record: Record) -> Iterator[Segment]:
        """The record as segments, in order.

        Raises:
            RecordError: the template has no place for the record's system message.
        """
        empty = self.conversation
        if record.system is not None and "{system_message}" not in empty.system_template:
            raise RecordError(
                "system_place",
                f"template {self.name!r} has no place for a system message",
                "remove it or choose another template",
                record.source,
            )
        system = empty.system_message if record.system is None else record.system
        roles = dict(zip(("user", "assistant"), empty.roles, strict=True))
        messages = [(roles[turn.role], turn.parts) for turn in record.turns]
        fixed, after_answer = "", False  # the template's text since the last message
        learned = iter([turn.supervised for turn in record.turns if turn.role == "assistant"])
        learns, end = False, empty.stop_token  # which ends an answer
        for kind, content in replace(empty, system_message=system, messages=messages).get_parts():
            if kind == "template":
                if after_answer:
                    yield Segment(end, supervised=learns, literal=True)
                    content, after_answer = content[len(end) :], False
                fixed += content
                continue
            yield Segment(fixed, literal=True)
            fixed, after_answer = "", kind == "answer"
            if kind == "question":
                for part in content:
                    yield Segment(medium=part) if isinstance(part, Medium) else Segment(part)
            elif kind == "answer":
                learns = next(learned)
                yield Segment("".join(content), supervised=learns, answer=True)
            else:
                yield Segment(content)
        yield Segment(fixed, literal=True)


@lru_cache(maxsize=64)
def get_template(name: str) -> Template:
    """The template `name`.

    Raises:
        SettingError: no such template, or its separator doesn't begin with the token that ends an answer.
    """
    try:
        conversation = get_conv_template(name)
    except ValueError as error:
        raise SettingError("template", str(error), "correct 'template'") from None
    if not conversation.stop_token or not conversation.sep.startswith(conversation.stop_token):
        raise SettingError(
            "template", f"template {name!r} doesn't end answers with {conversation.stop_token!r}", "choose another one"
        )
    return Template(conversation)
