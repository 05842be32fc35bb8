"""Tokenizer files: every release reads them, and the chat template is the training's prompt."""

import json
import string

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM, TEMPLATES, get_conv_template
from xtuner_plugins.hub.prompts import PromptEncoder
from xtuner_plugins.weights import tokenizer_files
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json


@pytest.mark.parametrize("template", [n for n in TEMPLATES if "<|im_end|>" in TEMPLATES[n][3]])
def test_chat_template_is_the_training_prompt(toy_parts, tmp_path, template):
    build_base(*toy_parts, tmp_path / "base", template=template)
    tokenizer = load_tokenizer(tmp_path / "base")
    turns = [("user", "<image>\nWhat's \\ 'this'?"), ("assistant", "A {{ cat }}"), ("user", "Sure?")]
    messages = [dict(role=r, content=c) for r, c in turns]
    for system in (None, "Be brief."):
        conversation = get_conv_template(template)
        if system:
            conversation.system_message = system
        for role, text in turns:
            conversation.append_message(conversation.roles[role == "assistant"], text)
        conversation.append_message(conversation.roles[1], None)
        given = [dict(role="system", content=system)] * bool(system) + messages
        rendered = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert rendered == conversation.get_prompt()


@pytest.fixture
def llama_like():
    """A tokenizer that writes a space before each text, as Llama's and Vicuna's do."""
    alphabet = ["▁", *string.ascii_letters, *".,:?'-\n"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_vicunas_chat_template_has_the_ids_of_training(llama_like):
    conversation = get_conv_template("vicuna_v1.1")
    turns = [("user", "Hi?"), ("assistant", "Yes."), ("user", "Ok")]
    messages = [dict(role=role, content=text) for role, text in turns]
    for message, role in zip(messages, conversation.roles * 2, strict=False):
        conversation.append_message(role, message["content"])
    conversation.append_message(conversation.roles[1], None)
    image_tokens = ["<img>", "</img>", "<IMG_CONTEXT>"]
    llama_like.add_tokens(image_tokens, special_tokens=True)
    trained = PromptEncoder(llama_like, 1, image_tokens).encode(conversation.get_parts())
    for template in (
        tokenizer_files.chat_template(llama_like, get_conv_template("vicuna_v1.1")),
        tokenizer_files.processor_template(get_conv_template("vicuna_v1.1"), image="<image>", video=None),
    ):
        text = llama_like.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert text == conversation.get_prompt()
        assert llama_like(text, add_special_tokens=False).input_ids == trained


def test_added_tokens_are_counted_once(toy_parts):
    tokenizer = load_tokenizer(toy_parts[1], complete=False)
    rows = tokenizer_files.num_token_rows(tokenizer)
    assert tokenizer_files.add_tokens(tokenizer, ADDED_TOKENS) == 9
    assert tokenizer_files.add_tokens(tokenizer, ADDED_TOKENS) == 0
    assert tokenizer_files.num_token_rows(tokenizer) == rows + 9
    assert tokenizer_files.token_id(tokenizer, "<img>") == rows and tokenizer_files.token_id(tokenizer, "<x>") is None


def test_saved_and_a_token_dropped_again(toy_base, tmp_path):
    """A processor's token comes and goes without a trace; fields and template stand in the config."""
    tokenizer = load_tokenizer(toy_base)
    before = tokenizer.get_vocab()
    tokenizer_files.add_tokens(tokenizer, ["<video>"])
    tokenizer_files.save_tokenizer(tokenizer, tmp_path, "{{ 1 }}", processor=True, video_token="<video>")
    config = read_json(tmp_path / "tokenizer_config.json")
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == "{{ 1 }}"
    assert config["video_token"] == "<video>" and not config["tokenizer_class"].endswith("TokenizerFast")
    assert load_tokenizer(tmp_path).get_vocab() == {**before, "<video>": len(before)}
    tokenizer_files.drop_last_token(tmp_path, "<img>")  # not the last: nothing happens
    assert load_tokenizer(tmp_path).get_vocab() == {**before, "<video>": len(before)}
    tokenizer_files.drop_last_token(tmp_path, "<video>")
    assert load_tokenizer(tmp_path).get_vocab() == before
    assert "<video>" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "merges, expected",
    [
        ([["a", "b"], ["ab", "c"]], ["a b", "ab c"]),
        (["a b"], ["a b"]),
        ([["a ", "b"]], [["a ", "b"]]),  # has no form as a string
    ],
)
def test_merges_as_strings(merges, expected, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"merges": merges}}))
    tokenizer_files.merges_as_strings(path)
    assert read_json(path)["model"]["merges"] == expected


def test_quote():
    assert tokenizer_files.quote("it's a \\ and\n") == "'it\\'s a \\\\ and\\n'"


def test_refusals(toy_parts, tmp_path):
    for folder, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "holds no tokenizer")):
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="lacks <img>"):
        load_tokenizer(toy_parts[1])
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    with pytest.raises(CheckpointError, match="offers only a slow tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_turn_is_dropped(toy_base, template):
    """A system turn that isn't the first and a role of another kind are refused, as they are in records."""
    tokenizer, user = load_tokenizer(toy_base), {"role": "user", "content": "Hi"}
    rendered = tokenizer_files.processor_template(get_conv_template(template), image="<image>", video=None)
    for turns in ([user, {"role": "system", "content": "S"}], [user, {"role": "tool", "content": "1"}]):
        for form in (tokenizer_files.chat_template(tokenizer, get_conv_template(template)), rendered):
            with pytest.raises(TemplateError, match="message 2 has the role (system|tool); the roles are user and"):
                tokenizer.apply_chat_template(turns, chat_template=form)


CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}SYSTEM{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "written, template, system",
    [
        ("<|im_start|>system\nYou are Q.<|im_end|>\n", "internvl2_5", "You are Q."),
        ("", "internvl2_5", None),
        ("<|im_start|>system\n<|im_end|>\n", "internvl2_5", ""),
        (f"<|im_start|>system\n{INTERNVL2_5_SYSTEM}<|im_end|>\n", "internvl2_5", INTERNVL2_5_SYSTEM),
    ],
)
def test_the_models_own_template_and_system_message_are_found(toy_parts, written, template, system):
    tokenizer = load_tokenizer(toy_parts[1], complete=False)
    tokenizer.chat_template = CHATML.replace("SYSTEM", written)
    found = tokenizer_files.own_conversation(tokenizer)
    assert (found.name, found.system_message) == (template, system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_the_table_is_found_again(toy_parts, name):
    """Those that render alike have one name: the first."""
    tokenizer = load_tokenizer(toy_parts[1], complete=False)
    asked = get_conv_template(name, system_message="Be brief.")
    tokenizer.chat_template = tokenizer_files.chat_template(tokenizer, asked)
    found = tokenizer_files.own_conversation(tokenizer)
    assert found.system_message == "Be brief." and found.get_parts()[1:] == asked.get_parts()[1:]


@pytest.mark.parametrize("own", [None, "[INST]{{ messages[0]['content'] }}", "{{ raise_exception('no') }}"])
def test_what_the_table_cannot_express_is_told_with_both_renderings(toy_parts, own):
    tokenizer = load_tokenizer(toy_parts[1], complete=False)
    tokenizer.chat_template, tokenizer.eos_token = own, "<|endoftext|>"
    assert tokenizer_files.own_conversation(tokenizer) is None
    ours, *theirs, end = tokenizer_files.describe_prompt(tokenizer, get_conv_template("internvl2_5"))
    assert ours.startswith("prompt with template internvl2_5: '<|im_start|>system") and ours.endswith(" tokens)")
    expected = {None: [], "[": ["'[INST]Q'"], "{": ["TemplateError: no"]}[own and own[0]]
    assert len(theirs) == len(expected) and all(text in line for text, line in zip(expected, theirs, strict=True))
    assert end == "answers end with '<|im_end|>'; the tokenizer ends texts with '<|endoftext|>'"
