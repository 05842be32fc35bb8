"""A zoo of broken records and images: each is diagnosed with file, line and reason; none crashes or passes."""

import io
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, RecordError


def record(question="<image>\nWhat?", answer="A cat.", **extra):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "ok.png", "conversations": turns, **extra}


def image(name, **extra):
    return record(image=name, **extra)


def turns(*pairs, keys=("from", "value")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def talk(*pairs, **extra):
    return {"conversations": turns(*pairs), **extra}


def messages(*pairs, **extra):
    return {"messages": turns(*pairs, keys=("role", "content")), **extra}


H, G, S = "human", "gpt", "system"
BOXED = {"boxes": "pixel", "width": 40, "height": 30}

# (what the line holds: bytes as they are, anything else as JSON; the reason it must be given)
LINES = [
    # not JSON
    (b"{", "json"),
    (b"{'a': 1}", "json"),
    (b'{"a": 1} {"b": 2}', "json"),
    (b'{"a": "\x01"}', "json"),
    (b"nothing", "json"),
    (b'{"a": "\xff\xfe"}', "encoding"),
    (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "json"),
    (b'{"a": ' + b"1" * 5000 + b"}", "json"),
    (b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", "json"),
    # not a record
    ([], "record_type"),
    ("text", "record_type"),
    (None, "record_type"),
    ({}, "no_conversations"),
    ({"image": "ok.png"}, "no_conversations"),
    ({"conversations": []}, "no_conversations"),
    ({"messages": []}, "no_conversations"),
    ({"conversations": "hi"}, "conversations_type"),
    ({"conversations": None}, "conversations_type"),
    (talk((H, "a"), (G, "b"), messages=[]), "two_formats"),
    # turns
    ({"conversations": ["a", "b"]}, "turn_type"),
    ({"conversations": [{"from": H}]}, "turn_keys"),
    ({"conversations": [{"value": "a"}]}, "turn_keys"),
    ({"conversations": [{"role": "user", "content": "a"}]}, "no_answer"),
    ({"messages": talk((H, "a"))["conversations"]}, "no_answer"),
    (talk(("bot", "a"), (G, "b")), "turn_order"),
    (talk(("observation", "a"), (G, "b")), "turn_role"),
    (talk((3, "a"), (G, "b")), "turn_role"),
    (talk(("Human", "a"), (G, "b")), None),
    (talk((H, 3), (G, "b")), "turn_content"),
    (talk((H, "a"), (G, ["b"])), "turn_content"),
    (talk((H, "a"), (G, True)), "turn_content"),
    (talk((H, "a")), "no_answer"),
    (talk((H, "a"), (G, "b"), (H, "c")), "no_answer"),
    (talk((S, "a")), "no_answer"),
    (talk((G, "a"), (H, "b")), "turn_order"),
    (talk((H, "a"), (H, "b"), (G, "c")), "turn_order"),
    (talk((H, "a"), (G, "b"), (G, "c")), "turn_order"),
    (talk((H, "a"), (S, "s"), (G, "b")), "turn_order"),
    (talk((S, "s"), (S, "s"), (H, "a"), (G, "b")), "turn_order"),
    (talk((H, "a"), (G, "")), "empty_answer"),
    (b'{"conversations": [], "conversations": []}', "json_duplicate_key"),
    (
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "value": "c"}]}',
        "json_duplicate_key",
    ),
    (json.dumps(talk((H, "a"), (G, "b"))).encode() + b",", "json"),
    # what would train something else than was meant
    (talk((H, "a"), (G, "b"), image_path="ok.png"), "media_key"),
    (talk((H, "a"), (G, "b"), img="ok.png"), "media_key"),
    (talk((H, "a"), (G, "b"), audio="a.wav"), "media_key"),
    ({"conversations": [{"from": H, "value": "a", "image": "ok.png"}, {"from": G, "value": "b"}]}, "media_key"),
    (talk((H, "a"), (G, "b"), label=False), "bad_answer"),
    (talk((H, "a"), (G, "b"), kto_tag=False), "bad_answer"),
    (talk((H, "a"), (G, "b"), rejected_response="c"), "bad_answer"),
    (talk((H, "a"), (G, "b"), rejected=turns((G, "c"))), "bad_answer"),
    (talk((H, "a"), (G, "b"), score=0), "bad_answer"),
    (talk((H, "a"), (G, "b"), reward=-1.5), "bad_answer"),
    (talk((H, "a"), (G, "b"), reward=0.5, score=True), None),
    (talk((H, "a"), (G, "b"), loss=False), "no_answer"),
    (talk((H, "a"), (G, "b"), weight=0.5), "turn_loss"),
    (talk((H, "a"), (G, "b"), system="a", system_prompt="b"), "system_twice"),
    *(
        ({"conversations": [{"from": H, "value": "a"}, {"from": G, "value": "b", **mark}]}, reason)
        for mark, reason in [
            ({"loss": "no"}, "turn_loss"),
            ({"weight": 0.5}, "turn_loss"),
            ({"loss_mask": 0}, "turn_loss"),
            ({"image": "a.jpg"}, "media_key"),
        ]
    ),
    ({"conversations": [{"from": H, "value": "a", "loss": True}, {"from": G, "value": "b"}]}, "turn_loss"),
    ({"conversations": [{"from": H, "value": "a"}, {"from": G, "value": "b", "loss": False}]}, "no_answer"),
    (talk((H, "<img>ok.png</img>What?"), (G, "b")), "foreign_form"),
    (record("<image>\n<img>ok.png</img>What?"), "foreign_form"),
    (talk((H, "<audio>a.wav</audio>What?"), (G, "b")), "foreign_form"),
    (record("<Image>\nWhat?"), "foreign_form"),
    (record("<image_1>\nWhat?"), "foreign_form"),
    (talk((H, "<ImageHere>What?"), (G, "b")), "foreign_form"),
    (talk((H, "<|vision_start|><|image_pad|><|vision_end|>What?"), (G, "b")), "foreign_form"),
    (record("<image>\nWhere is <ref-object>?", "<bbox>", objects={"bbox": []}), "objects"),
    (record("<image>\nWhere is <ref-object>?", "<bbox>", objects=[]), "foreign_form"),
    (record("What?", "<image> shows a cat."), "media_role"),
    (record(answer="<ref>it</ref><box>[[10, 20, 640, 1480]]</box>"), "boxes"),
    (record(answer="<ref>it</ref><box>[[300, 20, 100, 80]]</box>"), "boxes"),
    (record(answer="<ref>it</ref><box>[[10, 20, 30, 40]]"), "boxes"),
    (talk((H, "a\ud83d"), (G, "b")), "unicode"),
    (talk((H, "a"), (G, "\udc00")), "unicode"),
    (talk((H, "a"), (G, "b"), system="\ud800"), "unicode"),
    (talk((H, "a"), (G, "b"), system=3), "system_type"),
    (talk((S, "s"), (H, "a"), (G, "b"), system="s"), "system_twice"),
    # parts
    (messages(("user", [{"type": "audio"}]), ("assistant", "b")), "turn_part"),
    (messages(("user", [{"type": "text"}]), ("assistant", "b")), "turn_part"),
    (messages(("user", [{"type": "text", "text": 3}]), ("assistant", "b")), "turn_part"),
    (messages(("user", [None]), ("assistant", "b")), "turn_part"),
    (messages(("user", [{"image": "ok.png"}]), ("assistant", "b")), "turn_part"),
    (messages(("user", [{"type": "image", "image": ["ok.png"]}]), ("assistant", "b")), "media_name"),
    (messages(("user", [{"type": "image"}]), ("assistant", "b")), "image_count"),
    (messages(("user", "a"), ("assistant", [{"type": "image", "image": "ok.png"}])), "media_role"),
    (messages(("user", 3), ("assistant", "b")), "turn_content"),
    # images and placeholders
    (talk((H, "<image>"), (G, "b")), "image_count"),
    (record("<image><image>"), "image_count"),
    (record("no place", image=["ok.png", "ok.png"]), "image_count"),
    (record(image=["ok.png"] * 2), "image_count"),
    (record(image=[], question="<image>"), "image_count"),
    (record("a", "<image>", image=["ok.png"] * 2), "image_count"),
    (record(images=["ok.png"]), "media_twice"),
    (record(image=3), "media_name"),
    (record(image=[None]), "media_name"),
    (record(image=""), "media_name"),
    (record(video=["a.mp4", "b.mp4"]), "video_count"),
    (talk((H, "<video>"), (G, "b"), video=[]), None),
    # paths
    (image("none.png"), "image_missing"),
    (image("sub"), "image_missing"),
    (image("pipe.png"), "image_missing"),
    (image("  "), "media_name"),
    (image("../secret.png"), "image_outside"),
    (image("sub/../../secret.png"), "image_outside"),
    (image("/etc/passwd"), "image_outside"),
    (image("link.png"), "image_outside"),
    (image("dangling.png"), "image_outside"),
    (image("loop.png"), "image_unreadable"),
    (image("a\x00b.png"), "image_name"),
    (image("a\ud800b.png"), "unicode"),
    (messages(("user", [{"type": "image", "image": "\udfff"}]), ("assistant", "b")), "unicode"),
    (image("http://host/a.png"), "image_name"),
    (image("file:///ok.png"), "image_name"),
    (image("data:image/png;base64,AAAA"), "image_unreadable"),
    (image("data:image/png;base64,AAA"), "media_name"),
    (image("x" * 300 + ".png"), "image_unreadable"),
    # files
    (image("empty.png"), "image_unreadable"),
    (image("page.jpg"), "image_unreadable"),
    (image("zeros.png"), "image_unreadable"),
    (image("head.jpg"), "image_unreadable"),
    (image("cut.jpg"), "image_unreadable"),
    (image("cut.png"), "image_unreadable"),
    (image("cut.gif"), "image_unreadable"),
    (image("cut.webp"), "image_unreadable"),
    (image("cut.tiff"), "image_unreadable"),
    (image("bomb.png"), "image_pixels"),
    (image("float.tiff"), "image_mode"),
    (image("checksum.png"), "image_unreadable"),
    (image("archive.png"), "image_unreadable"),
    (image("vector.svg"), "image_unreadable"),
    # videos
    (record("<video>", image=None, video="none.mp4"), "video_missing"),
    (record("<video>", image=None, video="page.jpg"), "video_unreadable"),
    (record("<video>", image=None, video="sub"), "video_unreadable"),
    (record("<video>", image=None, video="cut.gif"), None),
    (record("<video>", image=None, video="../a.mp4"), "image_outside"),
    # boxes
    (record(answer="<box>[[1, 2, 3]]</box>", **BOXED), "boxes"),
    (record(answer="<box>nowhere</box>", **BOXED), "boxes"),
    (record(answer="<box>[[1, 2, 300, 4]]</box>", **BOXED), "boxes"),
    (record(answer="<box>[[null, 2, 3, 4]]</box>", **BOXED), "boxes"),
    (record(**BOXED | {"width": 41}), "boxes"),
    (record(**BOXED | {"height": "30"}), "boxes"),
    (talk((H, "a"), (G, "b"), **BOXED), "boxes"),
    # too long to be cut
    (record("word " * 3000), "too_long"),
]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_zoo(folder):
    """The images that the lines name."""
    (folder / "sub").mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    noise.save(folder / "ok.png")
    noise.save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "dangling.png").symlink_to(folder.parent / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "zeros.png").write_bytes(bytes(1000))
    (folder / "archive.png").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "vector.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    for suffix in ("jpg", "png", "gif", "webp", "tiff"):
        buffer = io.BytesIO()
        big = noise.resize((80, 60))
        options = {"save_all": True, "append_images": [big.rotate(90)]} if suffix == "gif" else {}
        big.save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
        (folder / f"cut.{suffix}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])
        if suffix == "jpg":
            (folder / "head.jpg").write_bytes(buffer.getvalue()[:30])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 70000, 70000, 8, 2, 0, 0, 0))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IEND", b""))
    data = bytearray((folder / "ok.png").read_bytes())
    data[data.index(b"IDAT") + 4] ^= 255  # the compressed stream's own checks fail, too
    (folder / "checksum.png").write_bytes(bytes(data))
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")


@pytest.fixture(scope="module")
def zoo(data_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    make_zoo(root / "images")
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line, _ in LINES]
    (root / "zoo.jsonl").write_bytes(b"{}\n" + b"\n".join(lines) + b"\n")
    return MultimodalDataset(data_base, str(root / "zoo.jsonl"), str(root / "images"), max_length=400)


def test_each_is_diagnosed(zoo):
    wrong = []
    for place, (line, reason) in enumerate(LINES):
        try:
            sample = zoo.load(0, place + 1)
        except RecordError as error:
            text = str(error)
            starts = text.startswith(f"{zoo.sources[0].index.path}:{place + 2}: ") and "\n" not in text
            if not (starts and error.remedy and len(text) < 700) or reason not in (None, error.reason):
                wrong.append((line, reason, text))
        else:
            if reason is not None or not len(sample["input_ids"]):
                wrong.append((line, reason, "a sample"))
    assert wrong == []


def test_the_tool_says_each_once_with_its_line(zoo, data_base, run_tool, tmp_path):
    path = zoo.sources[0].index.path
    (tmp_path / "config.py").write_text(
        "train_dataloader = dict(dataset=dict(type='xtuner_plugins.datasets.MultimodalDataset', max_length=400, "
        f"base={str(data_base)!r}, data_paths=[{path!r}], image_folders=[{zoo.sources[0].folder.folder!r}]))\n"
    )
    done = run_tool("tools/check_data.py", tmp_path / "config.py", "--workers", 2)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    said = [text for text in done.stdout.splitlines() if re.match(re.escape(path) + r":\d+: \S.*; \S", text)]
    lines = [int(text[len(path) + 1 :].split(":")[0]) for text in said]
    empty = {number + 2 for number, (_, reason) in enumerate(LINES) if reason == "empty_answer"}
    expected = {number + 2 for number, (_, reason) in enumerate(LINES) if reason is not None} - empty
    assert len(lines) == len(set(lines)) and expected <= set(lines) and not empty & set(lines)
    assert all(f"warning: {path}:{line}: its answers are empty" in done.stdout for line in empty)
    assert f"{len(lines)} of {len(LINES) + 1} records can't be trained on" in done.stdout


def test_the_index_finds_what_needs_no_decoding(zoo):
    """Lengths are measured from headers: what only decoding shows is found by the checker and by training."""
    lengths = zoo.lengths(0, num_workers=0)
    fates = lengths.lay_out(zoo.sources[0].tiling, zoo.budget)[2]
    decoding = ("cut.", "checksum", "head.jpg", "float.tiff", "'video': 'page.jpg'")
    for place, (line, reason) in enumerate(LINES):
        if reason is not None and not any(word in str(line) for word in decoding):
            assert fates[place + 1] >= 3, (line, reason)
