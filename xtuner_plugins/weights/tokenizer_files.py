"""The tokenizer of an official directory: nine tokens added in order, the training prompt in its chat template.

Files are written so that every reader loads them: ``tokenizer.json`` with merges as ``"a b"`` strings (the list form
that newer tokenizers save is unreadable for transformers 4.37 and 4.44), the chat template inside
``tokenizer_config.json`` (a separate ``.jinja`` file is ignored before 4.43).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..hub.constants import ADDED_TOKENS
from ..hub.conversation import TEMPLATES, Conversation, get_conv_template, own_system
from . import allowed
from .fast_tokenizers import load_fast_tokenizer
from .reading import CheckpointError, read_json
from .writer import write_json

FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt "
    "tokenizer.model chat_template.jinja chat_template.json"
).split()


def load_tokenizer(directory: str | Path, *, complete: bool = True):
    """A fast tokenizer from a local directory, never running code from it.

    Args:
        directory: with ``tokenizer.json`` or the files of a known tokenizer class. Those of InternLM2 and Qwen-7B,
            which need remote code, are converted, see ``fast_tokenizers``.
        complete: require the nine image tokens (an official directory has them, a bare LLM does not).

    Raises:
        CheckpointError: no tokenizer, only a slow one or one that needs remote code, or tokens missing.
    """
    if not any(Path(directory, name).is_file() for name in FILES[:2]):
        raise CheckpointError(f"{directory} holds no tokenizer (no {' and no '.join(FILES[:2])})")
    try:
        tokenizer = load_fast_tokenizer(directory)
    except CheckpointError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"{directory}: the tokenizer can't be loaded ({text})") from None
    if not tokenizer.is_fast:
        raise CheckpointError(f"{directory} offers only a slow tokenizer; a tokenizer.json is needed")
    if complete and (unknown := [token for token in ADDED_TOKENS if token_id(tokenizer, token) is None]):
        remedy = "give an official InternVL directory or one made by tools/build_base_model.py"
        raise CheckpointError(f"{directory}: the tokenizer lacks {' '.join(unknown)}; {remedy}")
    return tokenizer


def token_id(tokenizer, token: str | None) -> int | None:
    """Id of a token; None if the vocabulary doesn't hold it."""
    return tokenizer.get_vocab().get(token)


def add_tokens(tokenizer, tokens: Iterable[str]) -> int:
    """Adds special tokens after all others, in their order; returns how many were new."""
    return tokenizer.add_tokens(list(tokens), special_tokens=True)


def num_token_rows(tokenizer) -> int:
    """Embedding rows that the tokenizer needs: one more than its largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def _text(text: str) -> str:
    """The Jinja expression of a text."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"{{{{ '{quoted}' }}}}"


def conversation_of(config: Mapping) -> Conversation:
    """The template and system message of official config fields."""
    return get_conv_template(config["template"], **own_system(config))


def chat_template(tokenizer, conversation: Conversation, media: Mapping[str, str] | None = None) -> str:
    """A Jinja template that renders messages exactly as training does.

    Without ``media``, it begins with the tokenizer's start token if any, and ``<image>`` in a message stays as it is:
    serving engines replace it themselves. Else it is a processor's, with these texts for what messages in parts hold.
    """
    if media is None:
        start = "{{ bos_token }}" if _puts_start_token(tokenizer) else ""
        return start + _render(conversation, "{{ message['content'] }}")
    shown = "".join(f"{{% elif part['type'] == '{kind}' %}}{_text(text)}" for kind, text in media.items())
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}" + shown + "{% endif %}{% endfor %}{% endif %}"
    )
    return _render(conversation, content)


def own_conversation(tokenizer) -> Conversation | None:
    """The row of the table that prompts as a language model's own chat template does, with its system message.

    None if the tokenizer has no chat template, or one that no row can express.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("user", "R"))]
    rendered = [_rendered(tokenizer, messages) for messages in (turns[:1], turns)]
    for name in TEMPLATES:
        empty = get_conv_template(name)
        before, after = empty.system_template.split("{system_message}")
        begin = len(before) + (len(tokenizer.bos_token) if _puts_start_token(tokenizer) else 0)
        end = rendered[0].find(after + empty.question_sep + empty.roles[0])
        for system in (None, rendered[0][begin:end]):
            found = get_conv_template(name, system_message=system)
            ours = chat_template(tokenizer, found)
            if rendered == [_rendered(tokenizer, messages, ours) for messages in (turns[:1], turns)]:
                return found
    return None


def _puts_start_token(tokenizer) -> bool:
    """Whether a text begins with a start token."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _rendered(tokenizer, messages: list[dict], template: str | None = None) -> str:
    """The messages and the beginning of an answer; a template that can't render them gives its error."""
    try:
        options = {"tokenize": False, "add_generation_prompt": True}
        return tokenizer.apply_chat_template(messages, chat_template=template, **options)
    except Exception as error:  # of the template's own making
        return f"{type(error).__name__}: {error}"


def describe_prompt(tokenizer, conversation: Conversation) -> list[str]:
    """Lines on how a question is prompted in training, with its tokens; and how the tokenizer's own template does."""
    question, ours = [{"role": "user", "content": "Q"}], chat_template(tokenizer, conversation)
    texts = {_rendered(tokenizer, question, ours): f"prompt with template {conversation.name}"}
    if tokenizer.chat_template:
        texts.setdefault(_rendered(tokenizer, question), "the language model's own chat template renders")
    counts = {text: len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts}
    lines = [f"{what}: {text!r} ({counts[text]} tokens)" for text, what in texts.items()]
    if tokenizer.eos_token != (stop := conversation.stop_token):
        lines.append(f"answers end with {stop!r}; the tokenizer ends texts with {tokenizer.eos_token!r}")
    return lines


def _render(conversation: Conversation, content: str) -> str:
    """A chat template with the training's system message as the default; ``content`` renders what a message says."""
    before, after = conversation.system_template.split("{system_message}")
    (user, assistant), after = conversation.roles, after + conversation.question_sep
    default = conversation.system_message
    system = "" if default is None else _text(before + default + after)
    turns = {
        "message['role'] == 'system' and loop.first": (before, after),
        "message['role'] == 'user'": (user, conversation.question_sep),
        "message['role'] == 'assistant'": (assistant + conversation.answer_prefix, conversation.sep),
    }
    cases = [f"if {case} %}}{_text(begin)}{content}{_text(end)}{{% " for case, (begin, end) in turns.items()]
    return (
        f"{{% if not messages or messages[0]['role'] != 'system' %}}{system}{{% endif %}}"
        f"{{% for message in messages %}}{{% {'el'.join(cases)}else %}}"
        "{{ raise_exception('message ' ~ loop.index ~ ' has the role ' ~ message['role'] ~ "
        "'; the roles are user and assistant, and system for the first message') }}"
        f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{_text(assistant)}{{% endif %}}"
    )


def stop_token_ids(tokenizer, template: str) -> list[int]:
    """Ids that end an answer: the template's end token first, then the end tokens of the vocabulary."""
    names = (get_conv_template(template).stop_token, tokenizer.eos_token, "<|endoftext|>", "<|im_start|>")
    ids = dict.fromkeys(token_id(tokenizer, name) for name in names)
    return [each for each in ids if each is not None]


def save_tokenizer(tokenizer, out: Path, model: Mapping, media: Mapping | None = None, **fields) -> None:
    """Writes the tokenizer's files with the chat template of a model.

    Args:
        tokenizer: with all tokens.
        out: the directory.
        model: official fields.
        media: as for `chat_template`.
        **fields: further ones of ``tokenizer_config.json``.
    """
    tokenizer.save_pretrained(str(out))
    config, state = read_json(out / "tokenizer_config.json"), read_json(out / "tokenizer.json")
    _write_older_files(tokenizer, out, config, state)
    config = allowed.file_fields("tokenizer_config.json", config, "the tokenizer's config")
    # Fast classes of newer releases save e.g. Qwen2TokenizerFast; the plain name lets old and new pick slow or fast.
    name = type(tokenizer).__name__
    config["tokenizer_class"] = name if name == "PreTrainedTokenizerFast" else name.removesuffix("Fast")
    write_json(out / "tokenizer_config.json", {**config, **fields})
    write_template(tokenizer, out, model, media)
    merges = state["model"].get("merges")
    if merges and not isinstance(merges[0], str):
        state["model"]["merges"] = [" ".join(merge) for merge in merges]
        write_json(out / "tokenizer.json", state)


def _write_older_files(tokenizer, out: Path, config: dict, state: Mapping) -> None:
    """Adds what transformers 4 and its slow tokenizers read, and transformers 5 no longer writes."""
    extra = config.pop("extra_special_tokens", None)
    if "added_tokens_decoder" in config:
        return
    added = [dict(each) for each in state["added_tokens"]]
    config["added_tokens_decoder"] = {str(each.pop("id")): each for each in added}
    config["additional_special_tokens"] = list(extra or [])
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
    write_json(out / "special_tokens_map.json", {name: config[name] for name in names if config.get(name)})
    if "merges_file" in tokenizer.vocab_files_names and state["model"]["type"] == "BPE":
        tokenizer.backend_tokenizer.model.save(str(out))
        later = {each["content"]: each["id"] for each in state["added_tokens"]}
        write_json(out / "added_tokens.json", {k: n for k, n in later.items() if k not in state["model"]["vocab"]})


def write_template(tokenizer, out: Path, model: Mapping, media: Mapping | None) -> None:
    """Replaces a directory's chat templates, those in files of their own, too; arguments as for `save_tokenizer`."""
    for extra in out.glob("chat_template*"):
        extra.unlink()
    path, template = out / "tokenizer_config.json", chat_template(tokenizer, conversation_of(model), media)
    write_json(path, {**read_json(path, missing={}), "chat_template": template})
    if media is not None:  # where processors read it
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def drop_last_token(directory: Path, token: str) -> None:
    """Removes a processor's token, and what names it, from a directory's tokenizer files if it has the largest id."""
    state = read_json(directory / "tokenizer.json")
    *kept, last = state.get("added_tokens") or [{}]
    if last.get("content") != token:
        return
    write_json(directory / "tokenizer.json", {**state, "added_tokens": kept})
    # The second by transformers 5
    named = {token, "model_specific_special_tokens", "processor_class", "video_token"}
    named |= {"start_image_token", "end_image_token", "context_image_token"}
    for path in filter(Path.is_file, map(directory.joinpath, FILES[1:4])):
        fields = {key: value for key, value in read_json(path).items() if key not in named}
        fields.get("added_tokens_decoder", {}).pop(str(last["id"]), None)
        if token in fields.get("additional_special_tokens", ()):
            fields["additional_special_tokens"].remove(token)
        write_json(path, fields)
