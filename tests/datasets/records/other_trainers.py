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
ROLES = [("human", "bot"), ("USER", "ASSISTANT"), ("user", "chatgpt"), ("Human", "bing"), ("user", "model")]


class Talk:
    """A random conversation: its texts, the names of its images, and perhaps a system message."""

    def __init__(self, rng: random.Random, fewest_images: int = 0):
        number = 2 * rng.randrange(1, 4)
        self.texts = ["x" + " ".join(rng.choice(WORDS) for _ in range(rng.randrange(6))) for _ in range(number)]
        self.names = ["a.png", "b.png"][: rng.randrange(fewest_images, 3)]
        self.rest = {"system": "Be brief."} if rng.random() < 0.3 else {}
        self.shared = {"images": self.names, **self.rest}

    def mark(self) -> "Talk":
        """Placeholders before the first questions: filling goes from turn to turn, and a turn may have both."""
        for number in range(len(self.names)):
            self.texts[2 * (number % (len(self.texts) // 2))] = (
                "<image>\n" + self.texts[2 * (number % (len(self.texts) // 2))]
            )
        return self

    def history(self) -> list[list[str]]:
        return [self.texts[place : place + 2] for place in range(0, len(self.texts) - 2, 2)]

    def turns(self, key="from", text_key="value", roles=("human", "gpt"), texts=()) -> list[dict]:
        return [{key: roles[at % 2], text_key: text} for at, text in enumerate(texts or self.texts)]

    def ours(self, texts=()) -> dict:
        return {**({"image": self.names} if self.names else {}), **self.rest, "conversations": self.turns(texts=texts)}


STYLE = ("role", "content", ("user", "assistant"))


def llava(rng):
    talk = Talk(rng).mark()
    return {**talk.shared, "conversations": talk.turns()}, talk.ours()


def messages(rng):
    talk = Talk(rng).mark()
    return {**talk.shared, "messages": talk.turns(*STYLE)}, talk.ours()


def sharegpt(rng):
    talk, roles = Talk(rng).mark(), rng.choice(ROLES)
    *style, key = rng.choice(
        [("from", "value", "conversations"), ("role", "content", "conversations"), ("from", "value", "messages")]
    )
    return {**talk.shared, key: talk.turns(*style, roles)}, talk.ours()


def swift_query(rng):
    talk = Talk(rng).mark()
    record = {"query": talk.texts[-2], "response": talk.texts[-1], "history": talk.history()}
    return record | talk.shared, talk.ours()


def alpaca(rng):
    talk, more = Talk(rng).mark(), rng.choice(["", "more"])
    record = {"instruction": talk.texts[-2], "input": more, "output": talk.texts[-1], "history": talk.history()}
    talk.texts[-2] += f"\n{more}" if more else ""
    return record | talk.shared, talk.ours()


def of_pairs(rng):
    talk, (key, asked) = Talk(rng).mark(), rng.choice([("conversation", "human"), ("texts", "user")])
    pairs = [dict(zip((asked, "assistant"), pair, strict=True)) for pair in [*talk.history(), talk.texts[-2:]]]
    system = {rng.choice(("system", "system_prompt")): talk.rest.get("system")}
    return {key: pairs, "images": talk.names} | system, talk.ours()


def swift_objects(rng):
    talk, number = Talk(rng, 1), rng.randrange(1, 4)
    talk.texts[0] = "<image>" * len(talk.names) + talk.texts[0]
    boxes = [[10 * place, 20, 100 + place, 480] for place in range(number)]
    frame = [[round(x1 / 0.64), round(y1 / 0.48), round(x2 / 0.64), round(y2 / 0.48)] for x1, y1, x2, y2 in boxes]
    objects = {"ref": ["it"] * number, "bbox": boxes, "image_id": [rng.randrange(len(talk.names)) for _ in boxes]}
    if rng.random() < 0.5:
        fractions = [[x1 / 640, y1 / 480, x2 / 640, y2 / 480] for x1, y1, x2, y2 in boxes]
        objects = {"ref": ["it"] * number, "bbox": fractions, "bbox_type": "norm1"}
    theirs = [*talk.texts[:-1], talk.texts[-1] + "<ref-object><bbox>" * number]
    filled = "".join(f"<ref>it</ref><box>{json.dumps([box])}</box>" for box in frame)
    record = {**talk.shared, "messages": talk.turns(*STYLE, theirs), "objects": objects}
    return record, talk.ours([*talk.texts[:-1], talk.texts[-1] + filled])


def openai_parts(rng):
    """Content parts, as OpenAI's API takes them."""
    talk = Talk(rng, 1)
    parts = [{"type": "image_url", "image_url": {"url": name}} for name in talk.names]
    record = {"messages": talk.turns(*STYLE), **talk.rest}
    record["messages"][0]["content"] = [*parts, {"type": "text", "text": talk.texts[0]}]
    return record, talk.ours(["<image>" * len(talk.names) + talk.texts[0], *talk.texts[1:]])


WRITERS = (llava, messages, sharegpt, swift_query, of_pairs, swift_objects, alpaca, openai_parts)


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
        return parts + [copy.deepcopy(rng.choice(parts))] if parts and rng.random() < 0.05 else parts
    return value


def meaning(raw: dict) -> tuple:
    """What is trained of a record."""
    record = normalize_boxes(parse_record(raw, "f:1"), lambda place: SIZE)
    return record.turns, record.system


def check_equal(write, rng: random.Random) -> None:
    """A record of the kind and ours give the same turns."""
    theirs, mine = write(rng)
    before = copy.deepcopy(theirs)
    assert meaning(theirs) == meaning(mine), (theirs, mine)
    assert theirs == before, "the record was changed"


def check_mutated(write, rng: random.Random) -> bool:
    """Whether a changed record can be read; nothing but our errors comes out of it."""
    theirs, _ = write(rng)
    if rng.random() < 0.1:
        theirs["images"] = [rng.choice(["data:image/png;base64,AAAA", "data:image/png;base64,AAA", "data:,"])]
    try:
        meaning(parse_json(json.dumps(mutate(theirs, rng)).encode(), "f:1"))
        return True
    except DataError as error:
        assert str(error).startswith("f:1: ") and error.reason and error.remedy, error
        return False
