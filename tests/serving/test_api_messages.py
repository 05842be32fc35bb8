"""Requests as clients write them."""

import json

import pytest

from tests.serving.test_api import make_image, part, text
from xtuner_plugins.serving.api_messages import ApiError, ChatRequest, Limits


def parse(content, **options):
    message = {"role": "user", "content": content}
    return ChatRequest.parse(json.dumps({"model": "toy", "messages": [message], **options}).encode())


@pytest.mark.parametrize(
    "content, question",
    [
        ("Hello", "Hello"),
        ([text("Hello")], "Hello"),
        (["image", text("What?")], "<image>\nWhat?"),
        ([text("What?"), "image"], "<image>\nWhat?"),
        ([text("This:"), "image", text("or that:"), "image"], "This:\n<image>\nor that:\n<image>"),
        ([text("Is <image> it?"), text("Or <image>?"), "image", "image"], "Is <image> it?\nOr <image>?"),
    ],
)
def test_where_images_go(content, question):
    if isinstance(content, list):
        content = [part(make_image(0)) if item == "image" else item for item in content]
    dialogue = parse(content).dialogue(Limits())
    assert dialogue.question == question and len(dialogue.images) == question.count("<image>")


def test_null_labels_and_what_asks_for_nothing_are_taken():
    request = parse("Hello", n=1, user="me", metadata={"a": "b"}, stop=None, frequency_penalty=0.0, tools=[], seed=None)
    assert request.stop == [] and request.seed is None and request.temperature == 0
    assert parse("Hello", max_completion_tokens=3).answer_length(10) == 3
    assert parse("Hello", stop="a").stop == ["a"]


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("Hello", {"logprobs": True}, "logprobs = True is not supported; leave it out"),
        ("Hello", {"stop": ["a", ""]}, "stop holds an empty text"),
        ([{"type": "audio"}], {}, r"messages\[0\].content"),
        (
            [{**part(make_image(0)), "image_url": {"url": "data:,", "detail": "low"}}],
            {},
            r"detail: Input should be 'auto'",
        ),
        ("Is <image> it?", {}, r"messages\[0\]: the question has 1 <image> for 0 images"),
        ([part(make_image(0))] * 3, {}, "more than 2 images; send fewer"),
    ],
)
def test_what_is_refused(content, options, message):
    with pytest.raises(ApiError, match=message) as caught:
        parse(content, **options).dialogue(Limits(images=2))
    assert caught.value.status == 400
