"""Templates as training reads them: the very prompt of chat, in segments."""

from dataclasses import replace

import pytest

from tests.datasets.text.test_conversation import record_of
from xtuner_plugins.datasets.text.templates import Segment, Template, get_template
from xtuner_plugins.errors import RecordError, SettingError
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template


def test_segments_join_to_the_prompt_that_chat_renders():
    for name in TEMPLATES:
        template = get_template(name)
        record = record_of([("Q1", "A1"), ("Q2", "A2")], "S")
        text = "".join(segment.text for segment in template.segments(record))
        conversation = get_conv_template(name)
        conversation.system_message = "S"
        for number, message in enumerate(("Q1", "A1", "Q2", "A2")):
            conversation.append_message(conversation.roles[number % 2], message)
        assert text == conversation.get_prompt()


def test_unknown_template_lists_the_known():
    with pytest.raises(SettingError, match="internvl2_5"):
        get_template("no-such")


def test_a_template_without_a_place_for_a_system_message_refuses_one():
    bare = Template(replace(get_conv_template("internvl2_5"), system_template="", system_message=None))
    assert bare.segments(record_of([("a", "b")]))[0] == Segment("<|im_start|>user\n", literal=True)
    with pytest.raises(RecordError, match="no place"):
        bare.segments(record_of([("a", "b")], "S"))
