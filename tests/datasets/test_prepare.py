"""Small files of the published shapes."""

import json

import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.datasets.index import scan
from xtuner_plugins.datasets.prepare import CHINESE_PROMPTS, RECIPES, prepare
from xtuner_plugins.datasets.records import parse_record


def llava(image=None, number=0):
    record = {
        "id": str(number),
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?" if image else "What?"},
            {"from": "gpt", "value": "This."},
        ],
    }
    return record | ({"image": image} if image else {})


SHAPES = {
    "llava-pretrain": ([llava("00453/004539375.jpg")], ["00453/004539375.jpg"]),
    "llava-cc3m-595k": ([llava("GCC_train_002582585.jpg")], ["GCC_train_002582585.jpg"]),
    "llava-instruct-150k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "llava-instruct-80k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "detail-23k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "complex-reasoning-77k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "llava-mix665k": ([llava("coco/train2017/000000033471.jpg"), llava()], ["coco/train2017/000000033471.jpg", None]),
    "ai-challenger": (
        [{"url": "http://x", "image_id": "8f.jpg", "caption": [f"句子{i}" for i in range(5)]}],
        ["8f.jpg"] * 5,
    ),
    "textocr-gpt4o": ([{"image": "train_images/a1.jpg", "caption": "A sign that says STOP."}], ["a1.jpg"]),
    "sharegpt-4o": ([llava("0c.jpg")], ["0c.jpg"]),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_gives_records_that_train(tmp_path, name):
    raw, images = SHAPES[name]
    (tmp_path / RECIPES[name].file).write_text(json.dumps(raw))
    result = prepare(name, tmp_path, tmp_path / "out.jsonl")
    index = scan(tmp_path / "out.jsonl")
    records = [parse_record(index.parse(number), "f:1") for number in range(len(index))]
    assert [record.media[0].name if record.media else None for record in records] == images
    assert (result.num_read, result.num_written, result.complaints) == (len(raw), len(images), [])
    assert bool(result.remark) == (RECIPES[name].num_records is not None)  # far fewer than the published file


def test_counts_of_the_published_file_are_checked(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(RECIPES, "detail-23k", replace(RECIPES["detail-23k"], num_records=2))
    path = tmp_path / "detail_23k.json"
    path.write_text(json.dumps([llava("000000000001.jpg", 0), llava("000000000002.jpg", 1)]))
    assert prepare("detail-23k", path, tmp_path / "out.jsonl").remark == ""
    path.write_text(json.dumps([llava("000000000001.jpg")]))
    assert "1 records, the published detail_23k.json has 2" in prepare("detail-23k", path, tmp_path / "o").remark


@pytest.mark.parametrize(
    "coco, prefix, expected",
    [
        ("2017", "", "000000033471.jpg"),
        ("2014", "", "COCO_train2014_000000033471.jpg"),
        ("2017", "coco/train2017/", "coco/train2017/000000033471.jpg"),
        ("2014", "train2014/", "train2014/COCO_train2014_000000033471.jpg"),
    ],
)
def test_coco_names(tmp_path, coco, prefix, expected):
    for name in ("000000033471.jpg", "COCO_train2014_000000033471.jpg"):
        (tmp_path / "detail_23k.json").write_text(json.dumps([llava(name)]))
        prepare("detail-23k", tmp_path, tmp_path / "out.jsonl", coco=coco, image_prefix=prefix)
        assert scan(tmp_path / "out.jsonl").parse(0)["image"] == expected


def test_captions_get_different_prompts(tmp_path):
    (tmp_path / RECIPES["ai-challenger"].file).write_text(json.dumps(SHAPES["ai-challenger"][0]))
    prepare("ai-challenger", tmp_path, tmp_path / "out.jsonl")
    index = scan(tmp_path / "out.jsonl")
    asked = [index.parse(number)["conversations"][0]["value"] for number in range(5)]
    assert asked == [f"<image>\n{prompt}" for prompt in CHINESE_PROMPTS]


def test_what_training_would_refuse_is_left_out_with_a_reason(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([llava("a.jpg"), {"image": "b.jpg"}, llava("c.jpg")], indent=0))
    result = prepare("llava-cc3m-595k", path, tmp_path / "out.jsonl")
    assert result.num_written == 2 and len(result.complaints) == 1 and "chat.json:1" in result.complaints[0]
    (tmp_path / "train.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(SettingError, match="known are"):
        prepare("llava", path, tmp_path / "out.jsonl")
    wrong = prepare("textocr-gpt4o", tmp_path, tmp_path / "out.jsonl")
    assert wrong.num_written == 0 and "train.jsonl:1: not a record of train.jsonl" in wrong.complaints[0]
    with pytest.raises(SettingError, match="isn't there"):
        prepare("llava-pretrain", tmp_path, tmp_path / "out.jsonl")
