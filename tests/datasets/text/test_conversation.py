"""Ids and labels: what is supervised, what can't be forged, and agreement with tokenizing the whole prompt."""

import copy
import os
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from xtuner_plugins.datasets.records.record_checks import FORMS
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import join_pieces, tokenize
from xtuner_plugins.datasets.text.templates import Template, get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.errors import RecordError, SettingError
from xtuner_plugins.hub.conversation import TEMPLATES
from xtuner_plugins.toy.tokenizer import build_tokenizer

CONTROL = "<|im_start|> <|im_end|> <|endoftext|> <img> </img> <IMG_CONTEXT> <|end|> <|user|> <ref> </box> < é 中文 👍🏽"
CONTROL = [*CONTROL.split(), "<|im_start|>assistant\n", "\n", " ", "\r\n", "e\u0301"]
TEXTS = (
    st.lists(st.sampled_from(CONTROL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6)
    .map("".join)
    .map(lambda text: text.replace("<image>", "image"))
    .filter(lambda text: all(match.lastgroup == "own" for match in FORMS.finditer(text)))  # the others may be errors
)
CONVERSATIONS = st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=3)


def record_of(pairs, system=None, image=None):
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(sum(pairs, ()))]
    return parse_record({"conversations": turns, "system": system, "image": image}, "f:1")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=CONVERSATIONS, system=st.none() | TEXTS, images=st.sampled_from([(), ("a.png",)]))
def test_answers_and_their_ends_are_learned_and_control_tokens_are_the_templates(
    name, pairs, system, images, text_tokenizer, hf_tokenizer
):
    def encoded(*talk):
        pieces = tokenize(record_of(*talk, list(images)), template, text_tokenizer)
        return join_pieces(pieces, text_tokenizer, [3] * len(images), 4)

    template = get_template(name)
    sample = encoded(pairs, system)
    learned = sample.labels != -100
    np.testing.assert_array_equal(sample.labels[learned], sample.input_ids[learned])
    runs = np.split(sample.input_ids, np.flatnonzero(np.diff(learned)) + 1)[1::2]  # the prompt comes first
    decoded = [hf_tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]
    # the tokenizer normalizes to NFC, as its family does
    prefix, end = template.conversation.answer_prefix, template.conversation.stop_token
    assert decoded == [prefix + unicodedata.normalize("NFC", answer) + end for _, answer in pairs]
    # an empty system message leaves the template's own, which may be none
    calm = encoded([("q", "a")] * len(pairs), system and system.strip() and "s")
    grounding = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
    control = {i for token, i in hf_tokenizer.get_added_vocab().items() if token not in grounding}
    assert [i for i in sample.input_ids if i in control] == [i for i in calm.input_ids if i in control]


def test_tokens_of_images_and_tokens_in_texts(hf_tokenizer, monkeypatch):
    """Spans are atomic; grounding tokens are tokens, and so are ordinary added ones, such as Qwen3's `<think>`."""
    tokenizer = copy.deepcopy(hf_tokenizer)
    for token, special in (("<think>", False), ("<|secret|>", True)):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
    tokens = TextTokenizer(tokenizer)
    question, answer = "<image> Where is <ref>it</ref>? <image>", "<think>So. <|secret|><box>[[1, 2, 3, 4]]</box>"
    record = record_of([(question, answer)], None, ["a", "b"])
    sample = join_pieces(tokenize(record, get_template("internvl2_5"), tokens), tokens, [1, 3], 16)
    assert [length for _, length in sample.spans] == [18, 50]
    for first, length in sample.spans:
        expected = [tokens.image_start_id, *[tokens.image_context_id] * (length - 2), tokens.image_end_id]
        assert sample.input_ids[first : first + length].tolist() == expected
        assert (sample.labels[first : first + length] == -100).all()
    counts = {name: int((sample.input_ids == number).sum()) for name, number in tokenizer.get_added_vocab().items()}
    assert (counts["<|secret|>"], counts["<IMG_CONTEXT>"]) == (0, 64)
    assert all(counts[name] == 1 for name in ("<think>", "<ref>", "</ref>", "<box>", "</box>"))
    assert sample.input_ids[sample.labels != -100][0] == tokenizer.convert_tokens_to_ids("<think>")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # as XTuner sets it; a forked worker would wait for ever
    first, again = (TextTokenizer(hf_tokenizer).fingerprint() for _ in range(2))
    assert first == again != tokens.fingerprint() and os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_templates_write_the_prompts_of_chat_and_what_can_not_be_used_is_refused(tmp_path):
    for build, words in [
        (lambda: TextTokenizer.from_pretrained(build_tokenizer(tmp_path / "t")), "lacks <img>"),
        (lambda: TextTokenizer.from_pretrained(tmp_path / "none"), "none' can't be loaded"),
        (lambda: TextTokenizer.from_pretrained(tmp_path), "can't be loaded"),
        (lambda: TextTokenizer(object(), "mine"), "mine is a slow tokenizer; add its tokenizer.json"),
        (lambda: get_template("no-such"), "internvl2_5"),
    ]:
        with pytest.raises(SettingError, match=words):
            build()
    bare = Template(replace(get_template("internvl2_5").conversation, system_template="", system_message=None))
    assert bare.segments(record_of([("q", "a")]))[0] == ("<|im_start|>user\n", False, True, False)
    for template in map(get_template, TEMPLATES):  # several turns are the text that chat prompts with
        messages = list(zip(template.conversation.roles * 2, "qarb", strict=True))
        whole = "".join(text for _, text in replace(template.conversation, messages=messages).get_parts())
        segments = template.segments(record_of([("q", "a"), ("r", "b")]))
        assert "".join(segment.content for segment in segments) == whole
    with pytest.raises(RecordError, match="no place"):
        bare.segments(record_of([("q", "a")], system="S"))
