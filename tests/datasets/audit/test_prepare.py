"""Small files of the published shapes."""

import json
import stat
from dataclasses import replace

import pytest

from xtuner_plugins.datasets.audit.prepare import CHINESE_PROMPTS, GIVE_UP_AFTER, RECIPES, prepare
from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records.index import scan
from xtuner_plugins.datasets.records.records import parse_record


def llava(image=None, number=0, answer="This."):
    record = {
        "id": str(number),
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?" if image else "What?"},
            {"from": "gpt", "value": answer},
        ],
    }
    return record | ({"image": image} if image else {})


CHINESE = ["两个人在路上交谈", "一男一女站在室外", "公园里有两个人", "街道上有行人", "两个穿长裤的人在聊天"]
SHAPES = {
    "llava-pretrain": ([llava("00453/004539375.jpg")], ["00453/004539375.jpg"]),
    "llava-cc3m-595k": ([llava("GCC_train_002582585.jpg")], ["GCC_train_002582585.jpg"]),
    "llava-instruct-150k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "llava-instruct-80k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "conversation-58k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "detail-23k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "complex-reasoning-77k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "llava-mix665k": (
        [llava("coco/train2017/000000033471.jpg"), llava("gqa/images/2354786.jpg"), llava()],
        ["coco/train2017/000000033471.jpg", "gqa/images/2354786.jpg", None],
    ),
    "ai-challenger": ([{"url": "http://x", "image_id": "8f.jpg", "caption": CHINESE}], ["8f.jpg"] * 5),
    "ai-challenger-val": ([{"url": "http://x", "image_id": "8f.jpg", "caption": CHINESE}], ["8f.jpg"] * 5),
    "textocr-gpt4o": (
        [
            {"filename": "a1.jpg", "caption": "DESCRIPTION\nA sign.\n\nTEXT\nSTOP"},
            {
                "filename": "a2.jpg",
                "caption_image": "A sign.",
                "caption_text": "STOP",
                "caption_condensed": "STOP sign.",
            },
            {"image_id": "train_images/a3", "caption_image": "A sign.", "caption_text": "STOP"},
        ],
        ["a1.jpg", "a2.jpg", "a3.jpg"],
    ),
    "sharegpt-4o": ([llava("0c/0c.jpg"), {**llava(), "image": None}], ["0c/0c.jpg", None]),
}


def write(folder, name, raw):
    """The records as the data set's own file: a JSON array, or lines when it ends in .jsonl."""
    path = folder / RECIPES[name].file
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(map(json.dumps, raw))
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
    return path


def written(path):
    index = scan(path)
    return [index.parse(number) for number in range(len(index))]


def test_there_is_a_shape_for_every_recipe():
    assert SHAPES.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_gives_records_that_train(tmp_path, name):
    raw, images = SHAPES[name]
    write(tmp_path, name, raw)
    total, done = [], []
    result = prepare(name, tmp_path, tmp_path / "out.jsonl", begin=total.append, progress=done.append)
    records = [parse_record(record, "f:1") for record in written(tmp_path / "out.jsonl")]
    assert [record.media[0].name if record.media else None for record in records] == images
    assert (result.num_read, result.num_written, result.complaints) == (len(raw), len(images), [])
    assert result.num_images == len({image for image in images if image})
    assert (total, sum(done)) == ([len(raw)], len(raw))
    assert bool(result.remark) == (RECIPES[name].num_records is not None)  # far fewer than the published file
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_says_no_to_another_shape(tmp_path, name):
    """A wrong record is left out with its line; of a file that holds only such, nothing is written."""
    good = SHAPES[name][0][0]
    path = write(tmp_path, name, [good, {"foo": 1}, [], good])
    result = prepare(name, path, tmp_path / "out.jsonl")
    assert [text.split(" ")[0] for text in result.complaints] == [f"{path}:2:", f"{path}:3:"]
    assert result.num_read == 4 and result.num_written in (2, 10)
    write(tmp_path, name, [{"foo": 1}] * (GIVE_UP_AFTER + 1))
    with pytest.raises(SettingError, match=r"not one of the first 100 .* name that file"):
        prepare(name, path, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_each_count_has_somebody_who_says_so():
    for recipe in RECIPES.values():
        assert bool(recipe.num_records) == bool(recipe.counted_by) and recipe.images


def test_counts_of_the_published_file_are_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "detail-23k", replace(RECIPES["detail-23k"], num_records=2))
    path = tmp_path / "detail_23k.json"
    path.write_text(json.dumps([llava("000000000001.jpg", 0), llava("000000000002.jpg", 1)]))
    assert prepare("detail-23k", path, tmp_path / "out.jsonl").remark == ""
    path.write_text(json.dumps([llava("000000000001.jpg")]))
    remark = prepare("detail-23k", path, tmp_path / "o").remark
    assert remark.startswith(f"{path} has 1 records, the published detail_23k.json has 2 (says: users of")
    assert "fetch it again" in remark


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


def test_coco_names_within_a_mixture(tmp_path):
    """Only what lies in coco/ is COCO's: GQA and others have numbers for names, too."""
    raw = [llava("coco/train2017/000000033471.jpg"), llava("gqa/images/000000033471.jpg"), llava()]
    write(tmp_path, "llava-mix665k", raw)
    prepare("llava-mix665k", tmp_path, tmp_path / "out.jsonl", coco="2014")
    assert [record.get("image") for record in written(tmp_path / "out.jsonl")] == [
        "coco/train2014/COCO_train2014_000000033471.jpg",
        "gqa/images/000000033471.jpg",
        None,
    ]
    write(tmp_path, "llava-pretrain", [llava("000000033471.jpg")])
    with pytest.raises(SettingError, match="llava-pretrain has no images of COCO; leave --coco out"):
        prepare("llava-pretrain", tmp_path, tmp_path / "o", coco="2014")
    with pytest.raises(SettingError, match="coco='2015' is unknown"):
        prepare("llava-mix665k", tmp_path, tmp_path / "o", coco="2015")


def test_images_are_looked_for(tmp_path):
    """COCO 2017's training images are those of 2014's two sets: where one lies is seen in the folder."""
    for name in ("train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000000002.jpg"):
        (tmp_path / "coco" / name).parent.mkdir(parents=True)
        (tmp_path / "coco" / name).touch()
    raw = [llava(f"coco/train2017/{number:012}.jpg") for number in (1, 2, 3)]
    path = write(tmp_path, "llava-mix665k", raw)
    result = prepare("llava-mix665k", path, tmp_path / "out.jsonl", coco="2014", image_folder=tmp_path)
    assert [record["image"] for record in written(tmp_path / "out.jsonl")] == [
        "coco/train2014/COCO_train2014_000000000001.jpg",
        "coco/val2014/COCO_val2014_000000000002.jpg",
    ]
    assert len(result.complaints) == 1 and result.num_images == 2
    assert "COCO_train2014_000000000003.jpg' isn't in" in result.complaints[0]
    with pytest.raises(SettingError, match="image folder .*nowhere"):
        prepare("llava-mix665k", path, tmp_path / "o", image_folder=tmp_path / "nowhere")


def test_captions_get_different_prompts(tmp_path):
    write(tmp_path, "ai-challenger", SHAPES["ai-challenger"][0])
    prepare("ai-challenger", tmp_path, tmp_path / "out.jsonl")
    asked = [record["conversations"][0]["value"] for record in written(tmp_path / "out.jsonl")]
    assert asked == [f"<image>\n{prompt}" for prompt in CHINESE_PROMPTS]


def test_captions_that_are_not_five_texts(tmp_path):
    """A text would be taken letter by letter; an empty caption costs itself, not its image's others."""
    raw = [
        {"image_id": "a.jpg", "caption": "一句话有五字"},
        {"image_id": "b.jpg", "caption": CHINESE[:4]},
        {"image_id": "c.jpg", "caption": [*CHINESE[:4], 3]},
        {"image_id": "d.jpg", "caption": ["", *CHINESE[1:]]},
    ]
    write(tmp_path, "ai-challenger", raw)
    result = prepare("ai-challenger", tmp_path, tmp_path / "out.jsonl")
    assert result.num_written == 4 and len(result.complaints) == 4
    assert "not five texts" in result.complaints[0] and "not five texts" in result.complaints[1]


def test_text_of_images(tmp_path):
    write(tmp_path, "textocr-gpt4o", SHAPES["textocr-gpt4o"][0])
    prepare("textocr-gpt4o", tmp_path, tmp_path / "out.jsonl")
    assert [record["conversations"][1]["value"] for record in written(tmp_path / "out.jsonl")] == [
        "DESCRIPTION\nA sign.\n\nTEXT\nSTOP",
        "STOP sign.",
        "A sign.\nSTOP",
    ]


def test_what_training_would_refuse_is_left_out_with_a_reason(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([llava("a.jpg"), {"image": "b.jpg"}, llava("c.jpg")], indent=0))
    result = prepare("llava-cc3m-595k", path, tmp_path / "out.jsonl")
    assert result.num_written == 2 and len(result.complaints) == 1 and "chat.json:1" in result.complaints[0]
    (tmp_path / "train.jsonl").write_text('{"text": 1}\n')
    wrong = prepare("textocr-gpt4o", tmp_path, tmp_path / "out.jsonl")
    assert wrong.num_written == 0 and "train.jsonl:1: not a record of train.jsonl (no" in wrong.complaints[0]


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SettingError, match="known are"):
        prepare("llava", tmp_path, tmp_path / "out.jsonl")
    with pytest.raises(SettingError, match=r"holds no blip_laion_cc_sbu_558k.json; download it"):
        prepare("llava-pretrain", tmp_path, tmp_path / "out.jsonl")
    with pytest.raises(SettingError, match=r"none.json' isn't there; name the downloaded detail_23k.json"):
        prepare("detail-23k", tmp_path / "none.json", tmp_path / "out.jsonl")
    (tmp_path / "detail_23k.json").write_text(json.dumps([llava("000000000001.jpg")])[:-1])
    with pytest.raises(RecordError, match="isn't closed.*cut off"):
        prepare("detail-23k", tmp_path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
