"""Training, `chat` and engines see the same ids, id by id, whatever is said and whatever a tokenizer writes before it.

Each kind of tokenizer x each template: the ids that training makes are those that `chat` gives the model for any texts;
for plain ones also those of the whole prompt by the tokenizer itself, and of the chat template that an export gets.
"""

import itertools
import random

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer

from tests.weights.language_models import random_texts, sentencepiece_model, write_internlm2
from xtuner_plugins.datasets.plan.measure import count_pieces
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import join_pieces, split_pieces, tokenize
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template
from xtuner_plugins.hub.prompts import PromptEncoder
from xtuner_plugins.weights.tokenizer_files import chat_template, load_tokenizer

from .cases import make_config, make_model

PHI3_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PIECES = ["\n", "\n\n", " ", "  ", "\t", "\r\n", "\u0301", "\u200b", "def f(x):\n    return x"]
PIECES += (
    "Hello what's cat 12 。 你好 é 👍 a ▁ <0x0A> < |> <think> </think> <|im_end|> <|im_start|> <|end|> <s> </s>".split()
)
PIECES += [" the", "<|endoftext|>", *ADDED_TOKENS, *LLAMA3_TOKENS]
TURNS = [
    ("<image>\nWhat's in it?", "A bus and 2 dogs. "),
    (" Where is <ref>the bus</ref>?", "At <box>[[1, 2, 3, 4]]</box>, I think."),
    ("多少只狗？", "<think>so, it's\n\n12."),  # the longest token counts
]
CONVERSATIONS = ((None, TURNS[:1]), (None, TURNS), (None, TURNS[1:]), ("Be brief.", TURNS))
# Phi-3's own is the last: its control tokens swallow the white space behind them.
SCHEMES = ("bytes", "bytes, swallowed", "first", "always", "never", "prepend", "prepend, swallowed")


def with_scheme(tokenizer, scheme: str):
    """Sets where a converted SentencePiece tokenizer writes a space: `first`, `always`, `never` or `prepend...`."""
    backend, space = tokenizer.backend_tokenizer, normalizers.Replace(" ", "▁")
    if scheme.startswith("prepend"):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    else:
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    if scheme != "never":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.fixture(scope="module", params=SCHEMES)
def any_tokenizer(request, toy_base, tmp_path_factory):
    """A fast tokenizer of each kind with the control tokens of every template, and the name of its kind."""
    if is_bytes := "bytes" in request.param:
        made = AutoTokenizer.from_pretrained(toy_base)
        made.add_tokens(["</s>"], special_tokens=True)
    else:
        made = load_tokenizer(write_internlm2(tmp_path_factory.mktemp("llm"), image_tokens=ADDED_TOKENS))
    strips = "swallowed" in request.param
    for tokens, flags in (
        (LLAMA3_TOKENS, dict(special=True)),
        (PHI3_TOKENS, dict(special=True, rstrip=strips)),
        (("<think>", "</think>", "<think>so"), dict(special=False, rstrip=strips)),
    ):
        added = [AddedToken(token, normalized=False, **flags) for token in tokens]
        made.add_tokens(added, special_tokens=flags["special"])
    return made if is_bytes else with_scheme(made, request.param.replace("swallowed", "white space swallowed"))


def conversations(count):
    """(system, [(question, answer), ...]) with everything in it that could be tokenized in two ways."""
    generator = random.Random(0)
    texts = random_texts(200, 0)

    def text(least):
        pieces = generator.choices(PIECES, k=generator.randint(least, 6))
        return "".join([*pieces, *generator.choices(texts, k=generator.random() < 0.2)]).replace("<image>", "")

    for number in range(count):
        turns = [(text(0), text(1) + "." * (generator.random() < 0.5)) for _ in range(generator.randint(1, 3))]
        turns = [(q, a if a.strip() else a + "x") for q, a in turns]
        turns[0] = ("<image>\n" * (number % 3 > 0) + turns[0][0], turns[0][1])
        yield (text(0) if generator.random() < 0.3 else None), turns, [number % 3] * (number % 3 > 0)


def sample_of(template, system, turns, tokenizer, tiles, num_image_token):
    """What training makes of a conversation: its record, and the record's sample."""
    raw = [{"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)]
    images = ["a.png"] * raw[0]["value"].count("<image>")
    # The system message as a turn: an empty "system" key would leave the template's own.
    raw = [{"from": "system", "value": system}] * (system is not None) + raw
    record = parse_record({"conversations": raw, "image": images}, "f:1")
    pieces = tokenize(record, get_template(template), tokenizer)
    return record, join_pieces(pieces, tokenizer, tiles, num_image_token)


def test_prompt_is_what_was_trained(any_tokenizer):
    ours = TextTokenizer(any_tokenizer)
    for template in TEMPLATES:
        model = make_model(make_config(vocab_size=len(any_tokenizer), template=template))
        own = model.system_message
        for system, turns, tiles in conversations(40):
            model.system_message = own if system is None else system
            ids = model.build_prompt_ids(any_tokenizer, turns[-1][0], tiles, turns[:-1])
            _, sample = sample_of(template, system, turns, ours, tiles, 16)
            learned = sample.labels != -100
            first = np.flatnonzero(learned & ~np.concatenate([[False], learned[:-1]]))[-1]
            assert ids == sample.input_ids[:first].tolist(), (template, system, turns)


def test_ids_are_those_of_the_whole_prompt(any_tokenizer):
    """And the lengths counted before anything is encoded."""
    ours, samples, pieces = TextTokenizer(any_tokenizer), [], []
    for template, (system, turns) in itertools.product(TEMPLATES, CONVERSATIONS):
        tiles = [4] * turns[0][0].count("<image>")
        record, sample = sample_of(template, system, turns, ours, tiles, 2)
        samples.append(sample)
        pieces.append(split_pieces(record, get_template(template), ours))
        trained, messages = sample.input_ids.tolist(), [{"role": "system", "content": system}] * (system is not None)
        for question, answer in turns:
            question = question.replace("<image>", f"<img>{'<IMG_CONTEXT>' * 8}</img>")
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        kept = dict(chat_template=chat_template(any_tokenizer, get_conv_template(template)), return_dict=False)
        assert trained == any_tokenizer.apply_chat_template(messages, **kept)
        asked = any_tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **kept)
        assert trained[: len(asked)] == asked and sample.labels[len(asked)] == trained[len(asked)]
        assert (sample.labels[: len(asked)][-3:] == -100).all()  # the open turn is the prompt's
    text_tokens, supervised, *_ = count_pieces(pieces, ours).T.tolist()
    assert text_tokens == [len(sample.input_ids) - 10 * len(sample.spans) for sample in samples]
    assert supervised == [(sample.labels != -100).sum() for sample in samples]


def test_slow_tokenizers(tmp_path):
    """Llama's writes a space after every control token (`legacy`), or at the start only; transformers 5 has none."""
    has_slow = transformers.__version__ < "5"
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    for legacy, template in itertools.product((True, False) * has_slow, ("internvl2_5", "vicuna_v1.1")):
        slow = LlamaTokenizer(str(tmp_path / "tokenizer.model"), legacy=legacy)
        slow.add_tokens([*ADDED_TOKENS, "<|im_start|>", "<|im_end|>"], special_tokens=True)
        conversation = get_conv_template(template)
        for role, text in zip(conversation.roles * 2, sum(TURNS[1:], ()), strict=True):
            conversation.append_message(role, text)
        expected = slow("<s>" + conversation.get_prompt(), add_special_tokens=False).input_ids
        assert PromptEncoder(slow, 2).encode(conversation.get_parts()) == expected
