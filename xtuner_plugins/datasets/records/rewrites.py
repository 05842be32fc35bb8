"""Records of other trainers, rewritten as `records.parse_record` reads them.

    ms-swift, query        {"query": q, "response": a, "history": [[q, a], ...], "system": s}
    LLaMA-Factory, alpaca  {"instruction": q, "input": more, "output": a, "history": [[q, a], ...], "system": s}
    ms-swift, ShareGPT     {"conversation": [{"human": q, "assistant": a}, ...], "system": s}
    ShareGPT               {"conversations": [{"role": r, "content": c}, ...]}, or from and value in "messages"
    Qwen-VL                "Picture 1: <img>a.jpg</img>\\nWhat?" and <box>(x1,y1),(x2,y2)</box> in a frame of 0 to 1000

Each function takes a record of its kind (`kinds` recognizes them) and `file:line`, and returns a new record. Keys that
it has no use for are kept. `parse_record` checks the contents afterwards: one place says what a text may hold.
"""

import re

from .record_checks import FILE, fail, shorten

QUESTION_KEYS, ANSWER_KEYS = ("human", "user"), ("assistant", "gpt", "bot")
IMG_TAG = re.compile(rf"<img>({FILE})</img>")
QWEN_BOX = re.compile(r"<box>\s*\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)\s*</box>")
TURN_KEYS = {"conversations": ("from", "value"), "messages": ("role", "content")}
OTHER_LIST = {"conversations": "messages", "messages": "conversations"}


def history_messages(history: object, source: str) -> list[dict]:
    """The messages of [[question, answer], ...]; none for null.

    Raises:
        RecordError: it is something else.
    """
    if not isinstance(history, list | None):
        fail(source, "history", "'history' is no list of pairs", "write [[question, answer], ...]")
    messages = []
    for pair in history or ():
        if not isinstance(pair, list) or len(pair) != 2:
            fail(source, "history", "'history' holds something else than pairs", "write [[question, answer], ...]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def join_input(instruction: object, more: object, source: str) -> str:
    """The question of an alpaca record: instruction and input, whichever isn't empty, on lines of their own.

    Raises:
        RecordError: one of them is no text.
    """
    for name, text in (("instruction", instruction), ("input", more)):
        if not isinstance(text, str | None):
            fail(source, "turn_content", f"{name!r} is {shorten(str(text))}", "make it a string")
    return "\n".join(filter(None, (instruction, more)))


def from_query(raw: dict, source: str) -> dict:
    """ms-swift's query and response."""
    return _from_pair(raw, raw["query"], raw["response"], ("query", "response"), source)


def from_alpaca(raw: dict, source: str) -> dict:
    """LLaMA-Factory's alpaca form."""
    question = join_input(raw["instruction"], raw.get("input"), source)
    return _from_pair(raw, question, raw["output"], ("instruction", "input", "output"), source)


def from_conversation(raw: dict, source: str) -> dict:
    """ms-swift's pairs of a question and an answer."""
    pairs = raw["conversation"]
    if not isinstance(pairs, list):
        fail(source, "conversations_type", "'conversation' is no list", "make it a list of turns")
    messages = []
    for number, pair in enumerate(pairs, 1):
        keys = pair.keys() if isinstance(pair, dict) else ()
        question, answer = ([key for key in names if key in keys] for names in (QUESTION_KEYS, ANSWER_KEYS))
        if len(keys) != 2 or len(question) != 1 or len(answer) != 1:
            problem = f"turn {number} of 'conversation' isn't one question and one answer: {shorten(str(pair))}"
            fail(source, "turn_keys", problem, 'write {"human": ..., "assistant": ...}')
        messages.append({"role": "user", "content": pair[question[0]]})
        messages.append({"role": "assistant", "content": pair[answer[0]]})
    return _with_messages(raw, messages, ("conversation",), source)


def from_sharegpt(raw: dict, source: str) -> dict | None:
    """Turns whose keys are those of the other list; None where they aren't."""
    name = next(name for name in TURN_KEYS if name in raw)
    other = OTHER_LIST[name]
    return {other if key == name else key: value for key, value in raw.items()} if has_turns(raw, name, other) else None


def from_qwen_vl(raw: dict, source: str) -> dict:
    """Qwen-VL's image tags become `<image>`, its boxes ours; labels such as `Picture 1:` stay, questions name them.

    Raises:
        RecordError: a `<quad>`.
    """
    name = next(name for name in TURN_KEYS if name in raw)
    role_key, text_key = turn_keys(raw[name])
    names: list[str] = []

    def take(match: re.Match) -> str:
        names.append(match[1].strip())
        return "<image>"

    turns = []
    for turn in raw[name]:
        text = turn.get(text_key) if isinstance(turn, dict) else None
        if isinstance(text, str) and "<" in text:
            if "<quad>" in text:
                fail(source, "boxes", "<quad> isn't read from records of Qwen-VL", "write <box>, or remove the record")
            if is_question(turn, role_key):
                text = IMG_TAG.sub(take, text)
            turn = {**turn, text_key: QWEN_BOX.sub(r"<box>[[\1, \2, \3, \4]]</box>", text)}
        turns.append(turn)
    out = {key: value for key, value in raw.items() if key not in (name, "image", "images")}
    return out | {"images": names, "messages" if role_key == "role" else "conversations": turns}


def turn_keys(turns: object) -> tuple[str, str]:
    """(key of the role, key of the text), as the first turn has them; '' where it is no turn."""
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    return next((keys for keys in TURN_KEYS.values() if keys[0] in first and keys[1] in first), ("", ""))


def has_turns(raw: dict, name: str, of: str) -> bool:
    """Whether the list `name` begins with a turn that has the keys of the list `of`."""
    return turn_keys(raw.get(name)) == TURN_KEYS[of]


def is_question(turn: dict, role_key: str) -> bool:
    """Whether a turn is the user's."""
    role = turn.get(role_key)
    return isinstance(role, str) and role.lower() in QUESTION_KEYS


def _from_pair(raw: dict, question: object, answer: object, used: tuple[str, ...], source: str) -> dict:
    messages = [
        *history_messages(raw.get("history"), source),
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return _with_messages(raw, messages, (*used, "history"), source)


def _with_messages(raw: dict, messages: list[dict], used: tuple[str, ...], source: str) -> dict:
    """The record with `messages` in place of the keys `used`, and with ms-swift's other name of 'system'."""
    out = {key: value for key, value in raw.items() if key not in used}
    if out.get("system_prompt"):
        if out.get("system"):
            fail(source, "system_twice", "both 'system' and 'system_prompt'", "keep one of them")
        out["system"] = out.pop("system_prompt")
    return out | {"messages": messages}
