"""A record as the segments of its prompt, from the table of templates that exports ship.

`hub/conversation.py` says which parts a template's prompt has; training reads the same parts, so a model is trained on
the very text that `chat` will prompt it with. With `internvl2_5` (supervised parts underlined, `|` between segments):

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
    """A stretch of a conversation.

    Attributes:
        text: Its text; empty where `medium` stands in its place.
        supervised: The model learns to write it.
        literal: The template's own text, in which control tokens are meant. In a record's text they are characters.
        medium: An image or a video.
        answer: It is the text of an answer, learned or not, which is tokenized on its own.
    """

    text: str = ""
    supervised: bool = False
    literal: bool = False
    medium: Medium | None = None
    answer: bool = False


@dataclass(frozen=True)
class Template:
    """A template of the table, as training reads it.

    Attributes:
        conversation: The template without turns.
    """

    conversation: Conversation

    @property
    def name(self) -> str:
        """Its key in the table."""
        return self.conversation.name

    def segments(self, record: Record) -> Iterator[Segment]:
        """The record as segments, in order.

        Raises:
            RecordError: A system message that this template has no place for.
        """
        fixed, after_answer = "", False  # the template's text since the last message
        learned = iter([turn.supervised for turn in record.turns if turn.role == "assistant"])
        learns, end = False, self.conversation.stop_token  # which ends an answer
        for kind, content in self._open(record).get_parts():
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

    def _open(self, record: Record) -> Conversation:
        """The record's messages in the template; each is a sequence of parts."""
        empty = self.conversation
        system = empty.system_message if record.system is None else record.system
        if record.system is not None and "{system_message}" not in empty.system_template:
            raise RecordError(
                "system_place",
                f"template {self.name!r} has no place for a system message",
                "remove it or choose another template",
                record.source,
            )
        roles = {"user": empty.roles[0], "assistant": empty.roles[1]}
        messages = [(roles[turn.role], turn.parts) for turn in record.turns]
        return replace(empty, system_message=system, messages=messages)


@lru_cache(maxsize=64)
def get_template(name: str) -> Template:
    """The template `name`.

    Raises:
        SettingError: No such template, or one whose separator doesn't begin with the token that ends an answer.
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
