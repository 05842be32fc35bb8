"""Tokenizer files: every release reads them, and the chat template is the training's prompt."""

import pytest
from jinja2 import TemplateError

from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM, TEMPLATES, get_conv_template
from xtuner_plugins.weights import tokenizer_files
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json


@pytest.fixture
def bare(toy_parts):
    return load_tokenizer(toy_parts[1], complete=False)


def message(role, content):
    return {"role": role, "content": content}


def test_chat_template_is_the_training_prompt(bare):
    """With and without a system message; a system turn that isn't the first, and other roles, are refused."""

    def rendered(messages, template):
        options = dict(chat_template=template, tokenize=False, add_generation_prompt=True)
        return bare.apply_chat_template(messages, **options)

    turns = [("user", "<image>\nWhat's \\ 'this'?"), ("assistant", "A {{ cat }}"), ("user", "Sure?")]
    messages = [message(*turn) for turn in turns]
    for name in TEMPLATES:
        usual = get_conv_template(name)
        for system in (usual.system_message, None, "It's a \\ and\nQ."):
            conversation = get_conv_template(name, system_message=system)
            own, stock = (tokenizer_files.chat_template(bare, each) for each in (conversation, usual))
            for role, text in (*turns, ("assistant", None)):
                conversation.append_message(conversation.roles[role == "assistant"], text)
            assert rendered(messages, own) == conversation.get_prompt(), (name, system)
            if system:
                given = rendered([message("system", system), *messages], stock)
                assert given == conversation.get_prompt(), (name, system)
        processors = tokenizer_files.processor_template(usual, image="<image>", video=None)
        for odd in (message("system", "S"), message("tool", "1")):
            for form in (stock, processors):
                with pytest.raises(TemplateError, match="message 2 has the role (system|tool); the roles are user"):
                    rendered([message("user", "Hi"), odd], form)


def test_tokens_added_saved_and_dropped_again(bare, tmp_path):
    """A processor's token comes and goes without a trace; fields and template stand in the config."""
    rows = tokenizer_files.num_token_rows(bare)
    assert [tokenizer_files.add_tokens(bare, ADDED_TOKENS) for _ in range(2)] == [9, 0]
    assert tokenizer_files.num_token_rows(bare) == rows + 9
    assert tokenizer_files.token_id(bare, "<img>") == rows and tokenizer_files.token_id(bare, "<x>") is None
    before = bare.get_vocab()
    tokenizer_files.add_tokens(bare, ["<video>"])
    (tmp_path / "chat_template.json").touch()
    tokenizer_files.save_tokenizer(bare, tmp_path, "{{ 1 }}", processor=True, video_token="<video>")
    config = read_json(tmp_path / "tokenizer_config.json")
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == "{{ 1 }}"
    assert config["video_token"] == "<video>" and config["tokenizer_class"] == "Qwen2Tokenizer"
    assert not (tmp_path / "chat_template.json").exists()
    merges = read_json(tmp_path / "tokenizer.json")["model"]["merges"]  # lists are unreadable for old releases
    assert merges and all(isinstance(merge, str) for merge in merges)
    for token, expected in (("<img>", {**before, "<video>": len(before)}), ("<video>", before)):
        tokenizer_files.drop_last_token(tmp_path, token)  # the first isn't the last: nothing happens
        assert load_tokenizer(tmp_path).get_vocab() == expected
    assert "<video>" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_refusals(toy_parts, tmp_path):
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.json").write_text("{")
    table = {
        tmp_path / "nowhere": "holds no tokenizer",
        tmp_path / "torn": "torn: the tokenizer can't be loaded",
        toy_parts[1]: "lacks <img>",
        tmp_path: "offers only a slow tokenizer",
    }
    for folder, words in table.items():
        with pytest.raises(CheckpointError, match=words):
            load_tokenizer(folder)


def test_the_models_own_template_and_system_message_are_found(bare):
    """Or told with both renderings, where no row of the table can express it."""
    begin = "{% if loop.first and m.role != 'system' %}<|im_start|>system\nSYSTEM<|im_end|>\n{% endif %}"
    form = (
        "{% for m in messages %}BEGIN{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for system in ("You are Q.", None, "", INTERNVL2_5_SYSTEM):
        bare.chat_template = form.replace("BEGIN", "" if system is None else begin.replace("SYSTEM", system))
        found = tokenizer_files.own_conversation(bare)
        assert (found.name, found.system_message) == ("internvl2_5", system)
    for name in TEMPLATES:  # those that render alike have one name: the first
        asked = get_conv_template(name, system_message="Be brief.")
        bare.chat_template = tokenizer_files.chat_template(bare, asked)
        found = tokenizer_files.own_conversation(bare)
        assert found.system_message == "Be brief." and found.get_parts()[1:] == asked.get_parts()[1:]

    bare.eos_token, known = "<|endoftext|>", get_conv_template("internvl2_5")
    for own, expected in (
        (None, []),
        (tokenizer_files.chat_template(bare, known), []),
        ("[INST]{{ messages[0]['content'] }}", ["'[INST]Q'"]),
        ("{{ raise_exception('no') }}", ["TemplateError: no"]),
    ):
        bare.chat_template = own
        assert (tokenizer_files.own_conversation(bare) is None) == (not own or bool(expected))
        ours, *theirs, end = tokenizer_files.describe_prompt(bare, known)
        assert ours.startswith("prompt with template internvl2_5: '<|im_start|>system") and ours.endswith(" tokens)")
        assert len(theirs) == len(expected) and all(text in line for text, line in zip(expected, theirs, strict=True))
        assert end == "answers end with '<|im_end|>'; the tokenizer ends texts with '<|endoftext|>'"
