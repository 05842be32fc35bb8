"""Training, `chat` and engines see the same ids, whatever a tokenizer writes in front of texts.

Each kind of tokenizer x each template x several conversations: the ids that training makes are those of the whole
prompt by the tokenizer itself, and those of the chat template that an export gets.
"""

import itertools

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaTokenizer

from tests.hub.test_prompts import LLAMA3_TOKENS, PHI3_TOKENS
from tests.weights.vocabularies import sentencepiece_model, with_scheme, write_internlm2
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import encode, split_pieces
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template
from xtuner_plugins.hub.prompts import PromptEncoder, prompt_parts
from xtuner_plugins.weights import preprocessing
from xtuner_plugins.weights.tokenizer_files import chat_template, load_tokenizer

IMAGE = "<img>" + "<IMG_CONTEXT>" * 8 + "</img>"
TURNS = [
    ("<image>\nWhat's in it?", "A bus and 2 dogs. "),
    (" Where is <ref>the bus</ref>?", "At <box>[[1, 2, 3, 4]]</box>, I think."),
    ("多少只狗？", "It's\n\n12."),
]
CONVERSATIONS = ((None, TURNS[:1]), (None, TURNS), (None, TURNS[1:]), ("Be brief.", TURNS))
# Phi-3's own is the last: its control tokens swallow the white space behind them.
SCHEMES = ("bytes", "first", "always", "never", "prepend", "prepend, white space swallowed")


@pytest.fixture(scope="module", params=SCHEMES)
def tokenizer(request, tokenizer_dir, tmp_path_factory):
    """A fast tokenizer of each kind with the control tokens of every template."""
    if request.param == "bytes":
        made = AutoTokenizer.from_pretrained(tokenizer_dir)
        made.add_tokens(["</s>"], special_tokens=True)
    else:
        made = load_tokenizer(write_internlm2(tmp_path_factory.mktemp("llm"), image_tokens=ADDED_TOKENS))
    made.add_tokens([AddedToken(token, normalized=False, special=True) for token in LLAMA3_TOKENS], special_tokens=True)
    flags = dict(normalized=False, special=True, rstrip="swallowed" in request.param)
    made.add_tokens([AddedToken(token, **flags) for token in PHI3_TOKENS], special_tokens=True)
    return made if request.param == "bytes" else with_scheme(made, request.param)


def record_of(system, turns):
    raw = [{"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)]
    images = ["a.png"] * raw[0]["value"].count("<image>")
    return parse_record({"conversations": raw, "system": system or "", "image": images}, "f:1"), len(images)


def conversation_of(template, system, turns):
    conversation = get_conv_template(template)
    conversation.system_message = conversation.system_message if system is None else system
    for turn in turns:
        for role, text in zip(conversation.roles, turn, strict=True):
            conversation.append_message(role, text)
    return conversation


def test_ids_are_those_of_the_whole_prompt(tokenizer):
    for template in TEMPLATES:
        for system, turns in CONVERSATIONS:
            check_ids(tokenizer, template, system, turns)


def check_ids(tokenizer, template, system, turns):
    record, num_images = record_of(system, turns)
    sample = encode(record, get_template(template), TextTokenizer(tokenizer), [4] * num_images, 2)
    trained = sample.input_ids.tolist()

    start = tokenizer.decode(TextTokenizer(tokenizer).start_ids)
    written = [tuple(text.replace("<image>", IMAGE) for text in turn) for turn in turns]
    whole = start + conversation_of(template, system, written).get_prompt()
    assert trained == tokenizer(whole, add_special_tokens=False).input_ids

    messages = [{"role": "system", "content": system}] * (system is not None)
    for question, answer in written:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    kept = dict(chat_template=chat_template(tokenizer, get_conv_template(template)), return_dict=False)
    assert trained == tokenizer.apply_chat_template(messages, **kept)

    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **kept)
    assert trained[: len(asked)] == asked and sample.labels[len(asked)] == trained[len(asked)]
    assert (sample.labels[: len(asked)][-3:] == -100).all()  # the open turn is the prompt's
    conversation = conversation_of(template, system, turns)
    conversation.messages[-1][1] = None
    encoder = PromptEncoder(tokenizer, 2, ("<img>", "</img>", "<IMG_CONTEXT>"))
    assert encoder.encode(prompt_parts(conversation, [4] * num_images)) == asked


def test_slow_tokenizers_follow_their_own_rule(tmp_path):
    """Llama's slow tokenizer writes a space after every control token (`legacy`), or at the start only."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    for legacy, template in itertools.product((True, False), ("internvl2_5", "vicuna_v1.1")):
        slow = LlamaTokenizer(str(tmp_path / "tokenizer.model"), legacy=legacy)
        slow.add_tokens([*ADDED_TOKENS, "<|im_start|>", "<|im_end|>"], special_tokens=True)
        encoder = PromptEncoder(slow, 2, ("<img>", "</img>", "<IMG_CONTEXT>"))
        ids = encoder.encode(conversation_of(template, None, TURNS[1:]).get_parts())
        text = "<s>" + conversation_of(template, None, TURNS[1:]).get_prompt()
        assert ids == slow(text, add_special_tokens=False).input_ids


def test_lengths_count_what_is_cut_off(tokenizer):
    from xtuner_plugins.datasets.plan.measure import count_pieces

    ours, pieces, samples = TextTokenizer(tokenizer), [], []
    for row, template in enumerate([*TEMPLATES] * 2):
        record, num_images = record_of(None, TURNS[row // 6 :])
        pieces.append(split_pieces(record, get_template(template), ours))
        samples.append(encode(record, get_template(template), ours, [0] * num_images, 0))
    text_tokens, supervised, *_ = count_pieces(pieces, ours).T.tolist()
    assert text_tokens == [len(sample) - 2 * len(sample.spans) for sample in samples]
    assert supervised == [(sample.labels != -100).sum() for sample in samples]


def test_only_trainings_with_other_ids_are_refused(tokenizer, request):
    scheme = request.node.callspec.params["tokenizer"]
    refused = set()
    for template in TEMPLATES:
        old = {"datasets": [{"template": template}]}
        preprocessing.check_token_rules({**old, "token_rules": 2}, tokenizer, "a.pth")
        try:
            preprocessing.check_token_rules(old, tokenizer, "a.pth")
        except preprocessing.PreprocessingError as error:
            assert "a.pth was trained by an older version" in str(error) and "train anew" in str(error)
            refused.add(template)
    assert refused == ({"vicuna_v1.1"} if scheme in ("bytes", "never") else set(TEMPLATES))
