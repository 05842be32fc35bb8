"""Preference records: one prompt, an answer that was chosen and one that was rejected.

    {"image": "a.jpg", "question": "<image>\\nWhat is it?", "chosen": "A cat.", "rejected": "A dog."}

    MMPR, RLAIF-V   {"prompt": q, "chosen": a, "rejected": b}; `prompt` or `question`, a text or a list of messages
    LLaMA-Factory   the same with `instruction` and `input`, or with `conversations` or `messages` up to the user's
    ms-swift        {"messages": [..., a], "rejected_response": b}, or `rejected_messages`: [..., b]
                    {"query": q, "response": a, "rejected_response": b}, after the pairs of `history`
    TRL             {"chosen": [..., a], "rejected": [..., b]}, whose messages before the last are the same

An answer is a text, a message, or a list of one message. Everything else is as in `records`. Of a pair only the two
answers are compared; earlier answers of the conversation belong to the prompt.
"""

from dataclasses import dataclass

from .boxes import PLACEHOLDER
from .foreign import KEYS, RawTurn, history, joined, turns_of
from .record_checks import fail, fills_texts, shorten
from .records import Record, parse_record, parse_turns

PROMPTS = ("prompt", "question", "instruction", "query")
CHOSEN, REJECTED = ("chosen", "response"), ("rejected", "rejected_response", "rejected_messages")
PAIR_KEYS = KEYS | {*PROMPTS, *CHOSEN, *REJECTED}


@dataclass(frozen=True)
class PairRecord(Record):
    """A checked pair: `turns` end with the user's question, the chosen and the rejected answer."""

    def sides(self) -> tuple[Record, Record]:
        """The conversation with the chosen answer, and with the rejected one."""
        prompt, facts = self.turns[:-2], (self.source, self.system, self.extra)
        return tuple(Record((*prompt, answer), *facts) for answer in self.turns[-2:])


def parse_pair(raw: object, source: str) -> PairRecord:
    """As `parse_record`, of a pair."""
    if not isinstance(raw, dict):
        parse_record(raw, source)  # says what a record must be
    shared = {key: value for key, value in raw.items() if key not in PAIR_KEYS}
    prompt, *answers = _sides(raw, source)
    texts = [_text(answer, side, source) for side, answer in zip(("chosen", "rejected"), answers, strict=True)]
    if texts[0].strip() == texts[1].strip():
        fail(source, "equal_answers", f"both answers are {shorten(texts[0])}")
    record, other = (parse_turns(shared, [*prompt, RawTurn("assistant", text)], source) for text in texts)
    warnings = list({str(warning): warning for each in (record, other) for warning in each.warnings}.values())
    if fills_texts(record.extra.get("objects")) and PLACEHOLDER.search("".join((*record.texts, texts[1]))):
        problem = "'objects' of a pair: it isn't said which of them belong to which answer"
        fail(source, "objects", problem, "write the boxes into the texts, as <box>[[x1, y1, x2, y2]]</box>")
    context = tuple(turn._replace(supervised=False) for turn in record.turns[:-1])
    changed = {"turns": (*context, record.turns[-1], other.turns[-1]), "warnings": tuple(warnings)}
    return PairRecord(**vars(record) | changed)


def _sides(raw: dict, source: str) -> tuple[list[RawTurn], object, object]:
    """The turns of the prompt, and both answers as they are written."""
    rejected = raw[_only(REJECTED, raw, "no_pair", source)]
    if any(name in raw for name in ("conversations", "messages")) and "response" not in raw:
        turns = turns_of({key: value for key, value in raw.items() if not key.startswith("rejected")}, source)
        if "chosen" in raw:
            return turns, raw["chosen"], rejected
        return turns[:-1], turns[-1].content, rejected[-1] if isinstance(rejected, list) and rejected else rejected
    chosen = raw[_only(CHOSEN, raw, "no_pair", source)]
    is_list = all(isinstance(side, list) and len(side) > 1 for side in (chosen, rejected))
    if not is_list or any(name in raw for name in PROMPTS):
        return _prompt(raw, source), chosen, rejected
    if chosen[:-1] != rejected[:-1]:
        fail(source, "two_prompts", "'chosen' and 'rejected' begin with different messages")
    return turns_of({"messages": chosen[:-1]}, source), chosen[-1], rejected[-1]


def _prompt(raw: dict, source: str) -> list[RawTurn]:
    name = _only(PROMPTS, raw, "no_prompt", source)
    if isinstance(raw[name], list):
        return turns_of({"messages": raw[name]}, source)
    if not isinstance(raw[name], str):
        fail(source, "no_prompt", f"{name!r} is neither a text nor a list of messages")
    text = joined(raw[name], raw.get("input"), source) if name == "instruction" else raw[name]
    return [*history(raw.get("history"), source), RawTurn("user", text)]


def _only(names: tuple[str, ...], raw: dict, reason: str, source: str) -> str:
    """The one of some keys that a record has."""
    found = [name for name in names if raw.get(name) is not None]
    if not found:
        fail(source, reason, f"none of {', '.join(names)}; the record has the keys {sorted(raw)!r}"[:300])
    if len(found) > 1:
        fail(source, "two_formats", f"both {found[0]!r} and {found[1]!r}")
    return found[0]


def _text(answer: object, side: str, source: str) -> str:
    """The text of an answer: a string, a message, or a list of one message."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, dict):
        answer = answer.get("value", answer.get("content"))
    if isinstance(answer, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in answer):
        answer = "".join(str(part.get("text", "")) for part in answer)
    if not isinstance(answer, str):
        fail(source, "pair_answer", f"the {side} answer is neither a text nor one message")
    if not answer.strip():
        fail(source, "empty_answer", f"the {side} answer is empty", "give both answers, or remove the record")
    return answer
