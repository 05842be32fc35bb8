"""A zoo of broken records and images: each is diagnosed with file, line and reason; none crashes or passes."""

import json
import os
import re

import numpy as np
from PIL import Image

from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError

H, G, S = "human", "gpt", "system"
DATA = "data:image/png,ab"  # isn't base64
PIXELS = {"boxes": "pixel", "width": 40, "height": 30}
BAD_BOXES = [None, "[[1, 2, 3, 4]]", [[1, 2, 3]], [[[1, 2, 3, 4]]], [[True, 2, 3, 4]], [[1, 2, 41, 4]], []]
BAD_OBJECTS = [{"bbox": box} for box in (*BAD_BOXES, [[float("nan"), 2, 3, 4]], [[10**400, 2, 3, 4]])]
BAD_OBJECTS += [{"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}, {"bbox_type": "norm1000"}, {"bbox_type": ["real"]}]
BAD_OBJECTS += [{"image_id": [-1]}, {"image_id": [1]}, {"image_id": 1}, {"ref": [3]}, {"ref": []}]


def talk(*turns, **extra):
    """A record of turns: (role, text), a role alone, or a dict as it is."""
    pairs = [turn if isinstance(turn, (tuple, dict)) else (turn, "text") for turn in turns]
    said = [turn if isinstance(turn, dict) else {"from": turn[0], "value": turn[1]} for turn in pairs]
    return {"conversations": said, **extra}


def asked(question, answer="b", **extra):
    return talk((H, question), (G, answer), **extra)


def image(name="ok.png", question="<image>\nWhat?", answer="A cat.", **extra):
    return asked(question, answer, image=name, **extra)


def parts(content, answer="b"):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def marked(**mark):
    return talk(H, {"from": G, "value": "b", **mark})


def grounded(objects):
    given = {"ref": ["it"], "bbox": [[1, 2, 3, 4]], **objects}
    return image(question="<image>Where is <ref-object>?", answer="<bbox>", objects=given)


# What lines hold (bytes as they are, anything else as JSON), by the reason that they must be given
LINES = [
    ("json", [b"{", b"{'a': 1}", b'{"a": 1} {"b": 2}', b'{"a": "\x01"}', b"nothing", bytes(9)]),
    ("json", [b"1" * 5000, b"[" * 20_000 + b"]" * 20_000, json.dumps(talk(H, G)).encode() + b","]),
    ("encoding", [b'{"a": "\xff\xfe"}']),
    ("json_duplicate_key", [b'{"conversations": [], "conversations": []}', b'{"a": [{"b": 1, "b": 2}]}']),
    ("record_type", [[], "text", None]),
    ("no_conversations", [{}, {"image": "ok.png"}, talk(), {"messages": []}]),
    ("conversations_type", [{"conversations": "hi"}, {"conversations": None}]),
    ("two_formats", [talk(H, G, messages=[])]),
    ("no_conversations", [{"query": "a", "rejected_response": "b"}, {"instruction": "a", "response": "b"}]),
    ("history", [{"query": "a", "response": "b", "history": history} for history in (3, ["ab"], [["a"]], [3])]),
    ("turn_content", [{"instruction": question, "input": "a", "output": "b"} for question in (3, ["a"])]),
    ("turn_content", [{"instruction": "a", "input": 3, "output": "b"}, {"query": 3, "response": "b"}]),
    ("turn_keys", [{"texts": turns} for turns in (["a"], [{"user": "a"}], [{"human": "a", "role": "b"}])]),
    # turns
    ("turn_type", [{"conversations": ["a", "b"]}]),
    ("turn_keys", [talk({"from": H}), talk({"value": "a"})]),
    ("turn_role", [talk("observation", G), talk(3, G)]),
    ("turn_content", [asked(3), asked("a", ["b"]), asked("a", True), parts(3)]),
    ("turn_order", [talk("bot", G), talk(G, H), talk(H, H, G), talk(H, G, G), talk(H, S, G), talk(S, S, H, G)]),
    ("no_answer", [talk({"role": "user", "content": "a"}), {"messages": talk(H)["conversations"]}, talk(H), talk(S)]),
    ("no_answer", [talk(H, G, H), talk(H, G, loss=False), marked(loss=False)]),
    ("empty_answer", [asked("a", "")]),
    (None, [talk("Human", G), talk(H, G, reward=0.5, score=True), asked("<video>", video=[])]),
    # what would train something else than was meant
    ("media_key", [talk(H, G, image_path="ok.png"), talk(H, G, img="ok.png"), talk(H, G, audio="a.wav")]),
    ("media_key", [talk({"from": H, "value": "a", "image": "ok.png"}, G), marked(image="a.jpg")]),
    ("bad_answer", [talk(H, G, label=False), talk(H, G, kto_tag=False), talk(H, G, rejected_response="c")]),
    ("bad_answer", [talk(H, G, rejected=[G]), talk(H, G, score=0), talk(H, G, reward=-1.5)]),
    ("turn_loss", [talk(H, G, weight=0.5), marked(loss="no"), marked(weight=0.5), marked(loss_mask=0)]),
    ("turn_loss", [talk({"from": H, "value": "a", "loss": True}, G)]),
    ("system_twice", [talk(H, G, system="a", system_prompt="b"), talk(S, H, G, system="s")]),
    ("system_type", [talk(H, G, system=3)]),
    ("foreign_form", [asked(text) for text in ("<img>ok.png</img>?", "<audio>a.wav</audio>?", "<ImageHere>?")]),
    ("foreign_form", [image("ok.png", text) for text in ("<image><img>ok.png</img>?", "<Image>?", "<image_1>?")]),
    ("foreign_form", [asked("<|image_pad|>?"), image("ok.png", "<image><ref-object>?", "<bbox>", objects=[])]),
    ("objects", [grounded(objects) for objects in BAD_OBJECTS]),
    ("media_role", [image("ok.png", "What?", "<image> shows a cat.")]),
    ("media_role", [parts("a", [{"type": "image", "image": "ok.png"}])]),
    ("unicode", [asked("a\ud83d"), asked("a", "\udc00"), talk(H, G, system="\ud800"), image("a\ud800b.png")]),
    ("unicode", [parts([{"type": "image", "image": "\udfff"}])]),
    ("turn_part", [parts([{"type": "audio"}]), parts([{"type": "text"}]), parts([{"type": "text", "text": 3}])]),
    ("turn_part", [parts([None]), parts([{"image": "ok.png"}])]),
    # images and placeholders
    ("media_name", [image(name) for name in (3, [None], "", "  ", "data:image/png;base64,AAA", "data:", DATA)]),
    ("media_name", [parts([{"type": "image", "image": ["ok.png"]}])]),
    ("image_count", [parts([{"type": "image"}]), asked("<image>"), image("ok.png", "<image><image>")]),
    ("image_count", [image([], "<image>"), *(image(["ok.png"] * 2, text, "<image>") for text in ("a", "<image>"))]),
    ("video_count", [asked("<video>", video=["a.mp4", "b.mp4"])]),
    ("media_twice", [image("ok.png", images=["ok.png"])]),
    # paths and files
    ("image_missing", [image("none.png"), image("sub"), image("pipe.png")]),
    ("image_outside", [image("../secret.png"), image("sub/../../secret.png"), image("/etc/passwd"), image("link.png")]),
    ("image_outside", [image("dangling.png"), asked("<video>", video="../a.mp4")]),
    ("image_name", [image("a\x00b.png"), image("http://host/a.png"), image("file:///ok.png")]),
    ("image_unreadable", [image(f"{name}.png") for name in ("loop", "x" * 300, "empty", "zeros", "archive")]),
    ("image_unreadable", [image("page.png"), image("data:image/png;base64,AAAA")]),
    ("image_pixels", [image("bomb.png")]),
    ("video_missing", [asked("<video>", video="none.mp4")]),
    ("video_unreadable", [asked("<video>", video="sub")]),
    # boxes
    ("boxes", [image(answer=f"<box>[[{box}") for box in ("1, 2, 640, 1480]]</box>", "3, 2, 1, 8]]</box>", "1, 2")]),
    ("boxes", [image(answer=f"<box>{box}</box>", **PIXELS) for box in ("[[1, 2, 3]]", "nowhere", "[[1, 2, 300, 4]]")]),
    ("boxes", [image(**PIXELS | {"width": 41}), image(**PIXELS | {"height": "30"}), image(boxes="relative")]),
    ("boxes", [talk(H, G, **PIXELS)]),
    ("too_long", [asked("word " * 3000)]),
]
# What only decoding shows: lengths are measured by headers
DECODED = [image(name) for name in "cut.jpg cut.png cut.gif cut.webp cut.tiff head.jpg checksum.png".split()]
PAGE = asked("<video>", video="page.png")
LINES += [("image_unreadable", DECODED), ("video_unreadable", [PAGE]), ("image_mode", [image("float.tiff")])]
LINES += [(None, [asked("<video>", video="cut.gif")])]
LINES = [(reason, raw) for reason, raws in LINES for raw in raws]


def make_zoo(folder):
    """The images that the lines name."""
    (folder / "sub").mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for path in (folder / "ok.png", folder.parent / "secret.png"):
        noise.save(path)
    for name, target in (("link", "../secret.png"), ("dangling", "../nowhere.png"), ("loop", "loop.png")):
        (folder / f"{name}.png").symlink_to(folder / target)
    os.mkfifo(folder / "pipe.png")
    big = noise.resize((80, 60))
    for suffix in ("jpg", "png", "gif", "webp", "tiff"):
        options = {"save_all": True, "append_images": [big.rotate(90)]} if suffix == "gif" else {}
        big.save(path := folder / f"cut.{suffix}", **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    whole = (folder / "ok.png").read_bytes()
    wrong = whole.index(b"IDAT") + 4  # the compressed stream's own checks fail, too
    (folder / "checksum.png").write_bytes(whole[:wrong] + bytes([whole[wrong] ^ 255]) + whole[wrong + 1 :])
    (folder / "head.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:30])
    other = {"empty": b"", "zeros": bytes(1000), "archive": b"PK\x03\x04" + bytes(100), "page": b"<html>"}
    for name, data in other.items():
        (folder / f"{name}.png").write_bytes(data)
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")


def test_each_is_diagnosed(data_base, tmp_path):
    """By training and by the check; without decoding by what measures lengths."""
    make_zoo(images := tmp_path / "images")
    lines = [b"{}", *(line if isinstance(line, bytes) else json.dumps(line).encode() for _, line in LINES)]
    (file := tmp_path / "zoo.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    zoo, wrong, said = MultimodalDataset(data_base, str(file), str(images), max_length=400), [], []
    fates = zoo.lengths(0, num_workers=0).lay_out(zoo.sources[0].tiling, zoo.budget)[2]
    check_dataset(zoo, num_workers=2, say=lambda report, each: said.append((each.row, each.reason, each.is_warning)))
    for number, (reason, line) in enumerate(LINES, 1):
        try:
            found = None if len(zoo.load(0, number)["input_ids"]) else "no tokens"
        except RecordError as error:
            is_said = re.fullmatch(rf"{re.escape(str(file))}:{number + 1}: .{{1,650}}", str(error)) and error.remedy
            found = error.reason if is_said else str(error)
        is_measured = fates[number] >= 3 or reason in (None, "image_mode") or line in [*DECODED, PAGE]
        if found != reason or not is_measured or said.count((number, reason, False)) != bool(reason):
            wrong.append((line, reason, found, is_measured))
    assert wrong == [] and len([each for each in said if not each[2]]) == 1 + sum(bool(reason) for reason, _ in LINES)
