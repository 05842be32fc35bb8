"""Tokenizer files: every release reads them, and the chat template is the training's prompt."""

import itertools

import pytest
from jinja2 import TemplateError

from tests.weights.language_models import write_internlm2
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template
from xtuner_plugins.weights import tokenizer_files
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer


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
        processors = tokenizer_files.chat_template(bare, usual, {"image": "<image>"})
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
    media = {"image": "<image>"}
    tokenizer_files.save_tokenizer(bare, tmp_path, {"template": "internvl2_5"}, media, video_token="<video>")
    config = read_json(tmp_path / "tokenizer_config.json")
    template = tokenizer_files.chat_template(bare, get_conv_template("internvl2_5"), media)
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == template
    assert config["video_token"] == "<video>" and config["tokenizer_class"] == "Qwen2Tokenizer"
    assert not (tmp_path / "chat_template.json").exists()
    state = read_json(tmp_path / "tokenizer.json")
    assert all(token["special"] and not token["normalized"] for token in state["added_tokens"][-10:])
    merges = state["model"]["merges"]  # lists are unreadable for old releases
    assert merges and all(isinstance(merge, str) for merge in merges)
    for token, expected in (("<img>", {**before, "<video>": len(before)}), ("<video>", before)):
        tokenizer_files.drop_last_token(tmp_path, token)  # the first isn't the last: nothing happens
        assert load_tokenizer(tmp_path).get_vocab() == expected
    assert "<video>" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_what_transformers_5_no_longer_writes_is_what_transformers_4_wrote(bare, tmp_path):
    """Its slow tokenizers read these files."""
    tokenizer_files.add_tokens(bare, ADDED_TOKENS)
    bare.save_pretrained(tmp_path / "4")
    config, state = (read_json(tmp_path / "4" / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    if "added_tokens_decoder" not in config:
        pytest.skip("transformers 5 has written it")
    (tmp_path / "5").mkdir()
    ours = {key: value for key, value in config.items() if "added" not in key and "additional" not in key}
    ours["extra_special_tokens"] = config["additional_special_tokens"]
    tokenizer_files._write_older_files(bare, tmp_path / "5", ours, state)
    assert ours == {key: value for key, value in config.items() if key != "extra_special_tokens"}
    for name in ("added_tokens.json", "vocab.json"):
        assert read_json(tmp_path / "5" / name) == read_json(tmp_path / "4" / name)
    assert (tmp_path / "5/merges.txt").read_text().split() == (tmp_path / "4/merges.txt").read_text().split()


def test_the_models_own_template_and_system_message_are_found(bare, tmp_path):
    """Or told with both renderings, where no row of the table can express it."""
    started = load_tokenizer(write_internlm2(tmp_path), complete=False)
    assert tokenizer_files.chat_template(started, get_conv_template("internvl2_5")).startswith("{{ bos_token }}")
    for tokenizer, name in itertools.product((bare, started), TEMPLATES):  # of those that render alike the first
        for system in ("Be brief.", None, "", get_conv_template(name).system_message):
            asked = get_conv_template(name, system_message=system)
            tokenizer.chat_template = tokenizer_files.chat_template(tokenizer, asked)
            found = tokenizer_files.own_conversation(tokenizer)
            assert (found.system_message or "") == (system or "")
            assert found.get_parts()[1:] == asked.get_parts()[1:], (name, system)
    known, bare.eos_token = get_conv_template("internvl2_5"), "<|endoftext|>"
    end = "answers end with '<|im_end|>'; the tokenizer ends texts with '<|endoftext|>'"
    for own, words in ((None, ""), ("[INST]{{ messages[0].content }}", "'[INST]Q'"), ("{{ a.b.c }}", "Undefined")):
        bare.chat_template = own
        ours, *theirs = tokenizer_files.describe_prompt(bare, known)
        assert tokenizer_files.own_conversation(bare) is None and theirs.pop() == end and len(theirs) == bool(own)
        assert ours.startswith("prompt with template internvl2_5: '<|im_start|>system") and words in "".join(theirs)
        assert "Q<|im_end|>\\n<|im_start|>assistant\\n' (" in ours
