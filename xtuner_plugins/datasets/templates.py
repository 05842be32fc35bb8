"""How a conversation is strung together, as segments: built on the one table of prompts that exports ship.

`hub/conversation.py` says what the prompt of a template is; this module asks it, so that a model is trained on the
very text that `chat` will prompt it with. With `internvl2_5` (supervised parts underlined, `|` a segment's border):

    <|im_start|>system\\n|{system}|<|im_end|>\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|
    {answer}<|im_end|>|\\n<|im_start|>user\\n|{question}|<|im_end|>\\n<|im_start|>assistant\\n|{answer}<|im_end|>|\\n
    ------------------                                                                      ------------------
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from xtuner_plugins.hub.conversation import get_conv_template

from .errors import RecordError, SettingError
from .records import Medium, Record


class Segment(NamedTuple):
    """A stretch of a conversation.

    `literal`: the template's own text, in which control tokens are meant; otherwise text of a record, in which they
    are only characters. `medium` stands for a picture or video instead of text.
    """

    text: str = ""
    supervised: bool = False
    literal: bool = False
    medium: Medium | None = None


@dataclass(frozen=True)
class Template:
    """The fixed texts between the parts of a conversation."""

    name: str
    system_message: str | None
    before_system: str | None  # None: the template has no place for a system message
    before_first_user: str  # follows the system message
    before_user: str  # follows an answer's end token
    before_answer: str
    end: str  # the token that ends an answer; supervised
    after_last: str  # follows the last answer's end token
    without_system: str  # what opens a conversation that has no system message

    def segments(self, record: Record) -> Iterator[Segment]:
        """The record as segments, in order.

        Raises:
            RecordError: a system message that this template has no place for.
        """
        system = self.system_message if record.system is None else record.system
        if system is None:
            yield Segment(self.without_system, literal=True)
        elif self.before_system is None:
            raise RecordError(
                "system_place",
                f"template {self.name!r} has no place for a system message",
                "remove it or choose another template",
                record.source,
            )
        else:
            yield Segment(self.before_system, literal=True)
            # The template's own message is as trusted as the rest of it, and is one constant piece of text.
            yield Segment(system)
            yield Segment(self.before_first_user, literal=True)
        before_answer, end, before_user = (
            Segment(self.before_answer, False, True),
            Segment(self.end, True, True),
            Segment(self.before_user, False, True),
        )
        last = len(record.turns) - 1
        for number, (role, parts) in enumerate(record.turns):
            if role == "user":
                for part in parts:
                    yield Segment("", False, False, part) if isinstance(part, Medium) else Segment(part)
                yield before_answer
            else:
                yield Segment("".join(parts), True)
                yield end
                yield before_user if number < last else Segment(self.after_last, False, True)


@lru_cache(maxsize=64)
def get_template(name: str) -> Template:
    """The template `name`, taken apart by asking it to render marks instead of messages.

    Raises:
        SettingError: no such template, or one whose parts can't be told apart.
    """
    try:
        conversation = get_conv_template(name)
    except (ValueError, KeyError) as error:
        raise SettingError("template", str(error).strip("'\""), "correct 'template'") from None
    marks = ["\0system\0", "\0question\0", "\0answer\0", "\0again\0", "\0last\0"]
    system = conversation.system_message
    with_system = _render(name, marks[0], marks[1:])
    without = _render(name, None, marks[1:])
    has_place = marks[0] in with_system
    rest = with_system
    before = []
    for mark in marks if has_place else marks[1:]:
        head, found, rest = rest.partition(mark)
        if not found:
            raise SettingError("template", f"template {name!r} doesn't render every message", "choose another one")
        before.append(head)
    before_system = before.pop(0) if has_place else None
    first_user, before_answer, after_answer, _ = before
    end = conversation.stop_token
    if not end or not after_answer.startswith(end) or not rest.startswith(end):
        raise SettingError("template", f"template {name!r} doesn't end answers with {end!r}", "choose another one")
    return Template(
        name,
        system,
        before_system,
        first_user,
        after_answer[len(end) :],
        before_answer,
        end,
        rest[len(end) :],
        without.partition(marks[1])[0],
    )


def _render(name: str, system: str | None, messages: list[str]) -> str:
    conversation = get_conv_template(name)
    conversation.system_message = system
    for number, message in enumerate(messages):
        conversation.append_message(conversation.roles[number % 2], message)
    return conversation.get_prompt()
