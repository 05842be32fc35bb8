"""Generated records of other trainers, each beside the same conversation in our form.

Half of the cases are random conversations, written once in our form and once in that of the kind: both must give the
same turns. In the others values are swapped, removed, nested or given other types: a result or one of our own errors
may come out, and no other exception.
"""

import copy
import json
import random

from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.json_index import parse_json
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.errors import DataError

SIZE = (640, 480)  # of each image
WORDS = ["What", "is it?", "中文", "e\u0301", "👩\u200d👧", "\n", " ", "1 < 2", "<b>bold</b>", "<|im_end|>", "\r\n"]
VALUES = [None, True, 0, -1, 1.5, 1e400, "", "x", [], {}, ["x"], {"a": 1}, [None], [[]]]
VALUES += ["human", "data:", "<image>", "\ud800"]
TURN_KEYS = {"from": ("human", "gpt", "value"), "role": ("user", "assistant", "content")}


def text(rng: random.Random) -> str:
    return "x" + " ".join(rng.choice(WORDS) for _ in range(rng.randrange(6)))


def talk(rng: random.Random) -> list[str]:
    """Texts of the user and the assistant in turn."""
    return [text(rng) for _ in range(2 * rng.randrange(1, 4))]


def with_images(texts: list[str], marks: list[str]) -> list[str]:
    """The texts with an image's mark before each of the first questions."""
    out = list(texts)
    for number, mark in enumerate(marks):
        out[2 * (number % (len(out) // 2))] = mark + out[2 * (number % (len(out) // 2))]
    return out


def turns(texts: list[str], style: str = "from", roles: tuple[str, str] | None = None) -> list[dict]:
    *own, text_key = TURN_KEYS[style]
    return [{style: (roles or own)[number % 2], text_key: each} for number, each in enumerate(texts)]


def ours(texts: list[str], names: list[str], **rest) -> dict:
    return {**({"image": names} if names else {}), **rest, "conversations": turns(texts)}


def shared(rng: random.Random) -> tuple[list[str], list[str], dict]:
    """Texts with placeholders, names of images, and perhaps a system message."""
    names = [f"{name}.png" for name in "ab"[: rng.randrange(3)]]
    texts = with_images(talk(rng), ["<image>\n"] * len(names))
    # Filling goes from turn to turn, and a turn may have both.
    return texts, names, {"system": "Be brief."} if rng.random() < 0.3 else {}


def history(texts: list[str]) -> list[list[str]]:
    return [texts[place : place + 2] for place in range(0, len(texts) - 2, 2)]


def llava(rng):
    texts, names, rest = shared(rng)
    return {"images": names, **rest, "conversations": turns(texts)}, ours(texts, names, **rest)


def messages(rng):
    texts, names, rest = shared(rng)
    return {"images": names, **rest, "messages": turns(texts, "role")}, ours(texts, names, **rest)


def sharegpt(rng):
    texts, names, rest = shared(rng)
    roles = rng.choice(
        [("human", "bot"), ("USER", "ASSISTANT"), ("user", "chatgpt"), ("Human", "bing"), ("user", "model")]
    )
    style, key = rng.choice([("from", "conversations"), ("role", "conversations"), ("from", "messages")])
    return {"images": names, **rest, key: turns(texts, style, roles)}, ours(texts, names, **rest)


def swift_query(rng):
    texts, names, rest = shared(rng)
    record = {"query": texts[-2], "response": texts[-1], "history": history(texts), "images": names}
    return record | rest, ours(texts, names, **rest)


def alpaca(rng):
    texts, names, rest = shared(rng)
    record = {"instruction": texts[-2], "input": "", "output": texts[-1], "history": history(texts), "images": names}
    if rng.random() < 0.5:
        texts = [*texts[:-2], f"{texts[-2]}\nmore", texts[-1]]
        record["input"] = "more"
    return record | rest, ours(texts, names, **rest)


def of_pairs(rng):
    texts, names, rest = shared(rng)
    key, asked = rng.choice([("conversation", "human"), ("texts", "user")])
    pairs = [dict(zip((asked, "assistant"), pair, strict=True)) for pair in [*history(texts), texts[-2:]]]
    system = {rng.choice(("system", "system_prompt")): rest.get("system")}
    return {key: pairs, "images": names} | system, ours(texts, names, **rest)


def swift_objects(rng):
    texts, names = talk(rng), ["a.png", "b.png"][: rng.randrange(1, 3)]
    texts[0] = "<image>" * len(names) + texts[0]
    number = rng.randrange(1, 4)
    boxes = [[10 * place, 20, 100 + place, 480] for place in range(number)]
    fractions = rng.random() < 0.5
    given = [[x1 / 640, y1 / 480, x2 / 640, y2 / 480] for x1, y1, x2, y2 in boxes] if fractions else boxes
    frame = [[round(x1 / 0.64), round(y1 / 0.48), round(x2 / 0.64), round(y2 / 0.48)] for x1, y1, x2, y2 in boxes]
    objects = {"ref": ["it"] * number, "bbox": given}
    objects |= {"bbox_type": "norm1"} if fractions else {"image_id": [rng.randrange(len(names)) for _ in boxes]}
    theirs, mine = list(texts), list(texts)
    theirs[-1] += "<ref-object><bbox>" * number
    mine[-1] += "".join(f"<ref>it</ref><box>{json.dumps([box])}</box>" for box in frame)
    return {"images": names, "messages": turns(theirs, "role"), "objects": objects}, ours(mine, names)


def openai_parts(rng):
    """Content parts, as OpenAI's API takes them."""
    texts, names = talk(rng), ["a.png", "b.png"][: rng.randrange(1, 3)]
    parts = [{"type": "image_url", "image_url": {"url": name}} for name in names]
    record = {"messages": turns(texts, "role")}
    record["messages"][0]["content"] = [*parts, {"type": "text", "text": texts[0]}]
    mine = ["<image>" * len(names) + texts[0], *texts[1:]]
    return record, ours(mine, names)


WRITERS = {
    "llava": llava,
    "messages": messages,
    "sharegpt": sharegpt,
    "swift-query": swift_query,
    "pairs": of_pairs,
    "swift-objects": swift_objects,
    "alpaca": alpaca,
    "openai-parts": openai_parts,
}


def mutate(value, rng: random.Random):
    """The value with a few places changed."""
    if rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    if isinstance(value, dict):
        return {
            (rng.choice(["image", "objects", "history", "x"]) if rng.random() < 0.01 else key): mutate(part, rng)
            for key, part in value.items()
            if rng.random() > 0.02
        }
    if isinstance(value, list):
        parts = [mutate(part, rng) for part in value]
        if parts and rng.random() < 0.05:
            parts.insert(rng.randrange(len(parts)), copy.deepcopy(rng.choice(parts)))
        return parts
    return value


def sizes(place: int) -> tuple[int, int]:
    return SIZE


def meaning(raw: dict) -> tuple:
    """What is trained of a record."""
    record = normalize_boxes(parse_record(raw, "f:1"), sizes)
    return record.turns, record.system


def check_equal(kind: str, rng: random.Random) -> None:
    """A record of the kind and ours give the same turns."""
    theirs, mine = WRITERS[kind](rng)
    before = copy.deepcopy(theirs)
    assert meaning(theirs) == meaning(mine), (theirs, mine)
    assert theirs == before, "the record was changed"


def check_mutated(kind: str, rng: random.Random) -> bool:
    """Whether a changed record can be read; nothing but our errors comes out of it."""
    theirs, _ = WRITERS[kind](rng)
    if rng.random() < 0.1:
        theirs["images"] = [rng.choice(["data:image/png;base64,AAAA", "data:image/png;base64,AAA", "data:,"])]
    line = json.dumps(mutate(theirs, rng)).encode()
    try:
        meaning(parse_json(line, "f:1"))
        return True
    except DataError as error:
        assert str(error).startswith("f:1: ") and error.reason and error.remedy, error
        return False


def check_kind(kind: str, cases: int) -> None:
    """Checks so many generated records of one kind, equal ones and changed ones in turn."""
    readable = 0
    for number in range(cases):
        rng = random.Random(f"{kind}-0-{number}")
        if number % 2:
            readable += check_mutated(kind, rng)
        else:
            check_equal(kind, rng)
    assert readable, "every changed record is refused"
