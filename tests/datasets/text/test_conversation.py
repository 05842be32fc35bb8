"""Ids and labels: what is supervised, what can't be forged, and agreement with tokenizing the whole prompt."""

import copy
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from xtuner_plugins.datasets.records.record_checks import FORMS
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import encode
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template

CONTROL = "<|im_start|> <|im_end|> <|endoftext|> <img> </img> <IMG_CONTEXT> <|end|> <|user|> <ref> </box> < é 中文 👍🏽"
CONTROL = [*CONTROL.split(), "<|im_start|>assistant\n", "\n", " ", "\r\n", "e\u0301"]
TEXTS = (
    st.lists(st.sampled_from(CONTROL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6)
    .map("".join)
    .map(lambda text: text.replace("<image>", "image"))
    .filter(lambda text: all(match.lastgroup == "own" for match in FORMS.finditer(text)))  # the others may be errors
)
ANSWERS = TEXTS.filter(str.strip)
CONVERSATIONS = st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=3)


def record_of(pairs, system=None, image=None):
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(sum(pairs, ()))]
    return parse_record({"conversations": turns, "system": system, "image": image}, "f:1")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=CONVERSATIONS, system=st.none() | TEXTS, with_image=st.booleans())
def test_answers_and_their_ends_are_learned_and_control_tokens_are_the_templates(
    name, pairs, system, with_image, text_tokenizer, hf_tokenizer
):
    image, tiles = (["a.png"], [3]) if with_image else (None, [])
    sample = encode(record_of(pairs, system, image), get_template(name), text_tokenizer, tiles, 4)
    learned = sample.labels != -100
    np.testing.assert_array_equal(sample.labels[learned], sample.input_ids[learned])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learned.astype(int), [0]])))
    runs = [sample.input_ids[first:last] for first, last in edges.reshape(-1, 2)]
    prefix, end = get_conv_template(name).answer_prefix, get_conv_template(name).stop_token
    decoded = [hf_tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]
    # the tokenizer normalizes to NFC, as its family does
    assert decoded == [prefix + unicodedata.normalize("NFC", answer) + end for _, answer in pairs]
    # an empty system message leaves the template's own, which may be none
    calm = record_of([("q", "a")] * len(pairs), system and system.strip() and "s", image)
    calm = encode(calm, get_template(name), text_tokenizer, tiles, 4)
    grounding = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
    control = {i for token, i in hf_tokenizer.get_added_vocab().items() if token not in grounding}
    assert [i for i in sample.input_ids if i in control] == [i for i in calm.input_ids if i in control]


def test_tokens_of_images_and_tokens_in_texts(hf_tokenizer):
    """Spans are atomic; grounding tokens are tokens, and so are ordinary added ones, such as Qwen3's `<think>`."""
    tokenizer = copy.deepcopy(hf_tokenizer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    tokenizer.add_tokens([AddedToken("<|secret|>", normalized=False, special=True)])
    tokens = TextTokenizer(tokenizer)
    question, answer = "<image> Where is <ref>it</ref>? <image>", "<think>So. <|secret|><box>[[1, 2, 3, 4]]</box>"
    sample = encode(record_of([(question, answer)], None, ["a", "b"]), get_template("internvl2_5"), tokens, [1, 3], 16)
    assert [length for _, length in sample.spans] == [18, 50]
    for first, length in sample.spans:
        span = sample.input_ids[first : first + length]
        expected = [tokens.image_start_id, *[tokens.image_context_id] * (length - 2), tokens.image_end_id]
        assert span.tolist() == expected and (sample.labels[first : first + length] == -100).all()
    counts = {name: int((sample.input_ids == number).sum()) for name, number in tokenizer.get_added_vocab().items()}
    assert {name: counts[name] for name in ("<think>", "<|secret|>", "<IMG_CONTEXT>")} == {
        "<think>": 1,
        "<|secret|>": 0,
        "<IMG_CONTEXT>": 64,
    }
    assert all(counts[name] == 1 for name in ("<ref>", "</ref>", "<box>", "</box>"))
    assert sample.input_ids[sample.labels != -100][0] == tokenizer.convert_tokens_to_ids("<think>")
