"""Small files of the published shapes."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from xtuner_plugins.audit.prepare import GIVE_UP_AFTER, RECIPES, prepare
from xtuner_plugins.datasets import SettingError
from xtuner_plugins.datasets.records.pairs import parse_pair
from xtuner_plugins.datasets.records.records import parse_record

PAIR = {"question": "What?", "chosen": "A cat.", "rejected": "A dog."}
CAPTIONS = ["两个人在路上交谈", "一男一女站在室外", "公园里有两个人"]


def jpeg(color):
    Image.new("RGB", (32, 32), color).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def minimind(question, **image):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "这是。"}]
    return {"conversations": turns, **image}


SIGNS = [
    {"filename": "a1.jpg", "caption": "A sign: STOP\n"},
    {"filename": "x/a2.jpg", "caption_image": "A sign.", "caption_text": "STOP", "caption_condensed": "S"},
    {"image_id": "train_images/a3", "caption_image": "A sign.", "caption_text": "STOP"},
]
DESCRIBED = [
    (["a1.jpg"], "\nDescribe this image in detail.", ["A sign: STOP"]),
    (["a2.jpg"], "\nWhat does the image show? Include any text in it.", ["S"]),
    (["a3.jpg"], "\nDescribe this image in detail.", ["A sign.\nSTOP"]),
]
PROMPTS = ["\n请描述这张图片。", "\n请用一句话描述图片的内容。", "\n这张图片里有什么?"]
TALKS = [minimind("<image>与<image>?", image="0.jpg, 1.jpg"), minimind("你好", image="x.jpg")]
# Rows of the file, and (images, the first question's text, answers) of what is written
SHAPES = {
    "ai-challenger": (
        [{"url": "x", "image_id": "8f.jpg", "caption": CAPTIONS}],
        [(["8f.jpg"], prompt, [caption]) for prompt, caption in zip(PROMPTS, CAPTIONS, strict=True)],
    ),
    "textocr-gpt4o": (SIGNS, DESCRIBED),
    "minimind-v": (TALKS, [(["0.jpg", "1.jpg"], "与?", ["这是。"]), ([], "你好", ["这是。"])]),
}


def written(path, name):
    """(images, first question, answers) of each record."""
    parse, found = parse_pair if RECIPES[name].is_pair else parse_record, []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = parse(json.loads(line), "f:1")
        answers = [turn.text for turn in record.turns if turn.role == "assistant"]
        found.append(([medium.name for medium in record.media], record.turns[0].text, answers))
    return found


def test_records_train_and_others_are_left_out(tmp_path):
    """A wrong record is left out; of a file that holds only such, nothing is written."""
    path, out, other = (tmp_path / f"{name}.jsonl" for name in ("raw", "out", "other"))
    for name, (rows, expected) in SHAPES.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"foo": 1}, []]))
        result, number = prepare(name, path, out), len(rows)
        assert written(out, name) == expected and (name == "textocr-gpt4o" or "\\u" not in out.read_text("utf-8"))
        assert (result.num_read, result.num_written) == (number + 2, len(expected))
        assert [text.split(" ")[0] for text in result.complaints] == [f"{path}:{number + 1}:", f"{path}:{number + 2}:"]
        path.write_text('{"foo": 1}\n' * (GIVE_UP_AFTER + 1))
        with pytest.raises(SettingError, match="not one of the first 100 records is usable"):
            prepare(name, path, other)
        for source in (path, tmp_path / "r*w.jsonl"):
            with pytest.raises(SettingError, match="raw.jsonl is an input, too, which would be lost"):
                prepare(name, source, tmp_path / "." / "raw.jsonl")
    tools = {"conversations": [{"role": "user", "content": "你好", "tools": [{"name": "search"}]}]}
    refused = [
        ("minimind-v", minimind("<image><image>?", image="0.jpg"), "2 <image> in the user's turns, but 1 image given"),
        ("minimind-v", tools, "its turns call tools"),
        ("llava", {}, "known are ai-challenger"),
    ]
    for name, row, words in refused:
        path.write_text(json.dumps(row))
        with pytest.raises(SettingError, match=words):
            prepare(name, path, other)
    assert not other.exists()


def test_captions_of_basic_vision_language_model(tmp_path):
    images = {name: {"image_file": f"{name}.jpg", "ID": at} for at, name in enumerate("abc", 1)}
    captions = {"1": {"q": "<|extra_0|>\n图中有什么?", "a": ["一只猫", "一只狗"]}, "2": {"q": "What?", "a": "A cat."}}
    for name, content in (("image_map.json", images), ("captions.json", captions)):
        (tmp_path / name).write_text(json.dumps(content))
    result = prepare("basic-vlm", tmp_path, out := tmp_path / "out.jsonl")
    two = [(["a.jpg"], "\n图中有什么?", [answer]) for answer in ("一只猫", "一只狗")]
    assert written(out, "basic-vlm") == [*two, (["b.jpg"], "\nWhat?", ["A cat."])]
    assert result.num_read == 3 and "image_map.json 'c': not a record" in result.complaints[0]
    for name in ("captions.json", "image_map.json"):
        with pytest.raises(SettingError, match=f"{name} is an input, too"):
            prepare("basic-vlm", tmp_path, tmp_path / name)
    with pytest.raises(SettingError, match="not one of the first 3 records is usable; the first: .*'a.jpg' isn't in"):
        prepare("basic-vlm", tmp_path, out, tmp_path)
    (tmp_path / "captions.json").unlink()
    with pytest.raises(SettingError, match="captions.json can't be read .*name the folder that holds both"):
        prepare("basic-vlm", tmp_path, out)


def test_images_inside_a_file_are_written_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    red, blue = jpeg("red"), jpeg("blue")
    for name, row in {
        "minimind-v": lambda data: minimind("<image>?", image_bytes=data),
        "rlhf-v": lambda data: {"image": {"bytes": data, "path": "0.jpg"}, "text": json.dumps(PAIR)},
    }.items():
        for number, parts in enumerate([[red, red], [blue, b"no image"]]):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(map(row, parts))), f"part-{number}.parquet")
        with pytest.raises(SettingError, match="name a folder with --image-folder"):
            prepare(name, "part-*.parquet", "out.jsonl")
        result = prepare(name, "part-*.parquet", "out.jsonl", "images")
        assert result.complaints == ["part-1.parquet:2: its image can't be read; download the file again"]
        names = [images[0] for images, _, _ in written(tmp_path / "out.jsonl", name)]
        assert names[0] == names[1] and all(each.endswith(".jpg") for each in names)
        assert [(tmp_path / "images" / each).read_bytes() for each in names] == [red, red, blue]
