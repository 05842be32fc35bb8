"""Tokenizer files: every release reads them, and the chat template is the training's prompt."""

import string

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM, TEMPLATES, get_conv_template
from xtuner_plugins.hub.prompts import PromptEncoder
from xtuner_plugins.weights import tokenizer_files
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json


@pytest.fixture
def bare(toy_parts):
    return load_tokenizer(toy_parts[1], complete=False)


def conversation_with(name, turns, **fields):
    """The training's conversation of turns, open for an answer; and the turns as messages."""
    conversation = get_conv_template(name, **fields)
    for role, text in (*turns, ("assistant", None)):
        conversation.append_message(conversation.roles[role == "assistant"], text)
    return conversation, [dict(role=role, content=text) for role, text in turns]


def test_chat_template_is_the_training_prompt(bare):
    turns = [("user", "<image>\nWhat's \\ 'this'?"), ("assistant", "A {{ cat }}"), ("user", "Sure?")]
    for name in TEMPLATES:
        for system in (get_conv_template(name).system_message, None, "It's a \\ and\nQ."):
            conversation, messages = conversation_with(name, turns, system_message=system)
            own, usual = (tokenizer_files.chat_template(bare, each) for each in (conversation, get_conv_template(name)))
            given = [([], own), *([([{"role": "system", "content": system}], usual)] if system else [])]
            for first, template in given:
                rendered = bare.apply_chat_template(
                    first + messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
                assert rendered == conversation.get_prompt(), (name, system)


def test_vicunas_chat_template_has_the_ids_of_training():
    """With a tokenizer that writes a space before each text, as Llama's and Vicuna's do."""
    alphabet = ["▁", *string.ascii_letters, *".,:?'-\n"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    image_tokens = ["<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer.add_tokens(image_tokens, special_tokens=True)
    turns = [("user", "Hi?"), ("assistant", "Yes."), ("user", "Ok")]
    conversation, messages = conversation_with("vicuna_v1.1", turns)
    trained = PromptEncoder(tokenizer, 1, image_tokens).encode(conversation.get_parts())
    for template in (
        tokenizer_files.chat_template(tokenizer, get_conv_template("vicuna_v1.1")),
        tokenizer_files.processor_template(get_conv_template("vicuna_v1.1"), image="<image>", video=None),
    ):
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert text == conversation.get_prompt()
        assert tokenizer(text, add_special_tokens=False).input_ids == trained


def test_tokens_added_saved_and_dropped_again(bare, tmp_path):
    """A processor's token comes and goes without a trace; fields and template stand in the config."""
    rows = tokenizer_files.num_token_rows(bare)
    assert [tokenizer_files.add_tokens(bare, ADDED_TOKENS) for _ in range(2)] == [9, 0]
    assert tokenizer_files.num_token_rows(bare) == rows + 9
    assert tokenizer_files.token_id(bare, "<img>") == rows and tokenizer_files.token_id(bare, "<x>") is None
    before = bare.get_vocab()
    tokenizer_files.add_tokens(bare, ["<video>"])
    tokenizer_files.save_tokenizer(bare, tmp_path, "{{ 1 }}", processor=True, video_token="<video>")
    config = read_json(tmp_path / "tokenizer_config.json")
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == "{{ 1 }}"
    assert config["video_token"] == "<video>" and not config["tokenizer_class"].endswith("TokenizerFast")
    merges = read_json(tmp_path / "tokenizer.json")["model"]["merges"]  # lists are unreadable for old releases
    assert merges and all(isinstance(merge, str) for merge in merges)
    for token, expected in (("<img>", {**before, "<video>": len(before)}), ("<video>", before)):
        tokenizer_files.drop_last_token(tmp_path, token)  # the first isn't the last: nothing happens
        assert load_tokenizer(tmp_path).get_vocab() == expected
    assert "<video>" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_refusals(toy_parts, tmp_path):
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    table = {
        tmp_path / "nowhere": "holds no tokenizer",
        toy_parts[1]: "lacks <img>",
        tmp_path: "offers only a slow tokenizer",
    }
    for folder, message in table.items():
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(folder)


def test_no_turn_is_dropped(bare):
    """A system turn that isn't the first and a role of another kind are refused, as they are in records."""
    user = {"role": "user", "content": "Hi"}
    for name in TEMPLATES:
        conversation = get_conv_template(name)
        rendered = tokenizer_files.processor_template(conversation, image="<image>", video=None)
        for turns in ([user, {"role": "system", "content": "S"}], [user, {"role": "tool", "content": "1"}]):
            for form in (tokenizer_files.chat_template(bare, conversation), rendered):
                with pytest.raises(TemplateError, match="message 2 has the role (system|tool); the roles are user"):
                    bare.apply_chat_template(turns, chat_template=form)


def test_the_models_own_template_and_system_message_are_found(bare):
    form = (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}SYSTEM{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for system in ("You are Q.", None, "", INTERNVL2_5_SYSTEM):
        bare.chat_template = form.replace(
            "SYSTEM", "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
        )
        found = tokenizer_files.own_conversation(bare)
        assert (found.name, found.system_message) == ("internvl2_5", system)
    for name in TEMPLATES:  # those that render alike have one name: the first
        asked = get_conv_template(name, system_message="Be brief.")
        bare.chat_template = tokenizer_files.chat_template(bare, asked)
        found = tokenizer_files.own_conversation(bare)
        assert found.system_message == "Be brief." and found.get_parts()[1:] == asked.get_parts()[1:]


def test_what_the_table_cannot_express_is_told_with_both_renderings(bare):
    bare.eos_token = "<|endoftext|>"
    for own, expected in (
        (None, []),
        ("[INST]{{ messages[0]['content'] }}", ["'[INST]Q'"]),
        ("{{ raise_exception('no') }}", ["TemplateError: no"]),
    ):
        bare.chat_template = own
        assert tokenizer_files.own_conversation(bare) is None
        ours, *theirs, end = tokenizer_files.describe_prompt(bare, get_conv_template("internvl2_5"))
        assert ours.startswith("prompt with template internvl2_5: '<|im_start|>system") and ours.endswith(" tokens)")
        assert len(theirs) == len(expected) and all(text in line for text, line in zip(expected, theirs, strict=True))
        assert end == "answers end with '<|im_end|>'; the tokenizer ends texts with '<|endoftext|>'"
