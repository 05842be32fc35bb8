"""Small files of the published shapes."""

import hashlib
import io
import json
import stat
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from xtuner_plugins.datasets.audit.prepare import GIVE_UP_AFTER, prepare
from xtuner_plugins.datasets.audit.published import ASPECTS, CHINESE_PROMPTS, RECIPES
from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.records.pairs import parse_pair
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


def minimind(question, image=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "这是。"}]
    return {"conversations": turns} | ({"image": image} if image else {})


def jpeg(color, side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "JPEG")
    return buffer.getvalue()


def embedded(question, data):
    """A row of MiniMind-V's Parquet files: the turns as JSON text, the image as bytes."""
    return {"conversations": json.dumps(minimind(question)["conversations"]), "image_bytes": data}


def pair(image=None, **changes):
    record = {"image": image} if image else {}
    return record | {"question": "What?", "chosen": "A cat.", "rejected": "A dog."} | changes


def rated(*ratings, **names):
    """A row of VLFeedback: answers of these three ratings each."""
    completions = [
        {
            "annotations": {
                aspect: {"Rating": rating, "Rationale": "So."} for aspect, rating in zip(ASPECTS, each, strict=True)
            },
            "model": "m",
            "response": f"Answer {number}.",
        }
        for number, each in enumerate(ratings)
    ]
    return {"id": "v1", "prompt": "What?", "models": [], "completions": completions} | names


def name_of(data):
    name = hashlib.blake2b(data, digest_size=12).hexdigest()
    return f"{name[:2]}/{name}.jpg"


RED, BLACK = jpeg("red", 256), jpeg("black", 8)
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
    "chinese-llava-pretrain": ([llava("GCC_train_002582585.jpg")], ["GCC_train_002582585.jpg"]),
    "chinese-llava-instruct-150k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "chinese-llava-instruct-80k": ([llava("000000033471.jpg")], ["000000033471.jpg"]),
    "minimind-v-pretrain-jsonl": (
        [minimind("提供给定图像的简要描述。\n<image>", "GCC_train_002582585.jpg")],
        ["GCC_train_002582585.jpg"],
    ),
    "minimind-v-sft-jsonl": (
        [
            minimind("闹钟的位置对睡眠质量有什么影响？<image>", "train-00000-of-00001_image_0_0.jpg"),
            minimind("你好", "x.jpg"),
        ],
        ["train-00000-of-00001_image_0_0.jpg", None],
    ),
    "minimind-v-sft-multi-jsonl": (
        [minimind("Source: <image> Target: <image> What differs?", "0.jpg, 1.jpg")],
        ["0.jpg"],
    ),
    "minimind-v-pretrain": ([embedded("<image>\n请描述", RED)], [name_of(RED)]),
    "minimind-v-sft": ([embedded("<image>\n请描述", RED), embedded("你好", BLACK)], [name_of(RED), None]),
    "mmpr-v1.1": ([pair("1.png"), pair(["a/2.png", "3.png"])], ["set/1.png", "set/a/2.png"]),
    "mmpr-v1.2": ([pair("1.png", question="<image>\nWhat?"), pair()], ["set/1.png", None]),
    "rlaif-v": ([pair({"bytes": RED, "path": "0.jpg"}, ds_name="d", idx="7")], [name_of(RED)]),
    "rlhf-v": (
        [
            {"image": {"bytes": RED, "path": "0.jpg"}, "text": json.dumps(pair())},
            {"image": {"bytes": BLACK, "path": "1.jpg"}, "text": json.dumps(pair())},
        ],
        [name_of(RED), name_of(BLACK)],
    ),
    "vlfeedback": (
        [rated("455", "123"), rated("555", "111", img_path="/somewhere/v2.jpg")],
        ["v1.jpg", "v2.jpg"],
    ),
    "vlfeedback-parquet": ([rated("455", "123", image={"bytes": RED, "path": "v1.jpg"})], [name_of(RED)]),
}


def write(folder, name, raw):
    """The records as the data set's own file: a JSON array, lines when it ends in .jsonl, or Parquet."""
    path = folder / RECIPES[name].file.replace("*", "000")
    path.parent.mkdir(parents=True, exist_ok=True)
    if RECIPES[name].has_meta:
        entry = {"root": "MMPR/images/set", "annotation": "MMPR/annotations/s.jsonl", "length": len(raw) + 1}
        path.write_text(json.dumps({"s": entry}))
        path = folder / "annotations/s.jsonl"
        path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(raw), path)
        return path
    lines = list(map(json.dumps, raw))
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
    return path


def written(path):
    index = open_records(path, path.parent)
    return [index.parse(number) for number in range(len(index))]


def own_folder(name, folder):
    """The argument of `prepare` that a file with images in it needs."""
    return {"image_folder": folder / "written"} if RECIPES[name].embedded else {}


def test_there_is_a_shape_for_every_recipe():
    assert SHAPES.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_gives_records_that_train(tmp_path, name):
    raw, images = SHAPES[name]
    write(tmp_path, name, raw)
    total, done = [], []
    result = prepare(
        name, tmp_path, tmp_path / "out.jsonl", begin=total.append, progress=done.append, **own_folder(name, tmp_path)
    )
    records = [RECIPES[name].parse(record, "f:1") for record in written(tmp_path / "out.jsonl")]
    assert [record.media[0].name if record.media else None for record in records] == images
    assert (result.num_read, result.num_written, result.complaints) == (len(raw), len(images), [])
    assert result.num_images == len({medium.name for record in records for medium in record.media})
    assert (total, sum(done)) == ([len(raw)], len(raw))
    counted = RECIPES[name].num_records is not None or RECIPES[name].has_meta
    assert bool(result.remark) == counted  # far fewer than the published file
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPES.items() if not recipe.embedded))
def test_every_recipe_says_no_to_another_shape(tmp_path, name):
    """A wrong record is left out with its line; of a file that holds only such, nothing is written."""
    good = SHAPES[name][0][0]
    path = write(tmp_path, name, [good, {"foo": 1}, [], good])
    result = prepare(name, tmp_path, tmp_path / "out.jsonl")
    assert [text.split(" ")[0] for text in result.complaints] == [f"{path}:2:", f"{path}:3:"]
    assert result.num_read == 4 and result.num_written in (2, 10)
    write(tmp_path, name, [{"foo": 1}] * (GIVE_UP_AFTER + 1))
    with pytest.raises(SettingError, match=r"not one of the first 100 .* name that file"):
        prepare(name, tmp_path, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


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
        assert open_records(tmp_path / "out.jsonl", tmp_path).parse(0)["image"] == expected


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
    with pytest.raises(RecordError, match="isn't closed, the file ends inside it"):
        prepare("detail-23k", tmp_path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_minimind_gives_the_records_that_one_would_write(tmp_path):
    """Several images are one string there; turns keep their order; text alone loses the image that nothing calls."""
    question = "Source: <image> Target: <image> What differs?"
    write(tmp_path, "minimind-v-sft-multi-jsonl", [minimind(question, "0.jpg, 1.jpg"), minimind("你好", "x.jpg")])
    result = prepare("minimind-v-sft-multi-jsonl", tmp_path, tmp_path / "out.jsonl")
    answer = {"from": "gpt", "value": "这是。"}
    by_hand = [
        {"image": ["0.jpg", "1.jpg"], "conversations": [{"from": "human", "value": question}, answer]},
        {"conversations": [{"from": "human", "value": "你好"}, answer]},
    ]
    records = [parse_record(record, "f:1") for record in written(tmp_path / "out.jsonl")]
    assert [(r.turns, r.system) for r in records] == [
        (r.turns, r.system) for r in (parse_record(raw, "f:1") for raw in by_hand)
    ]
    assert (result.num_text, result.num_images) == (1, 2)


def test_minimind_records_that_would_be_guessed_are_refused(tmp_path):
    tools = minimind("你好")
    tools["conversations"][0]["tools"] = [{"name": "search"}]
    raw = [minimind("<image>是什么"), minimind("<image><image>", "0.jpg"), tools, minimind("好<image>", "a.jpg")]
    write(tmp_path, "minimind-v-sft-jsonl", raw)
    result = prepare("minimind-v-sft-jsonl", tmp_path, tmp_path / "out.jsonl")
    assert result.num_written == 1 and [text.split("; ")[0].split(": ", 1)[1] for text in result.complaints] == [
        "not a record of sft_vlm_data.jsonl (no 'image')",
        "2 <image> in the user's turns, but 1 image given by 'image'",
        "not a record of sft_vlm_data.jsonl (its turns call tools, which no template here writes)",
    ]


def test_images_inside_a_file_are_written_once(tmp_path):
    blue, folder = jpeg("blue", 256), tmp_path / "images"
    raw = [
        embedded("<image>这是", RED),
        embedded("<image>那是", RED),
        embedded("<image>是", blue),
        embedded("你好", BLACK),
    ]
    raw.append(embedded("<image>坏", b"no image"))
    path = write(tmp_path, "minimind-v-sft", raw)
    result = prepare("minimind-v-sft", tmp_path, tmp_path / "out.jsonl", image_folder=folder)
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg")) == sorted(
        map(name_of, (RED, blue))
    )
    assert (folder / name_of(RED)).read_bytes() == RED
    assert (result.num_written, result.num_images, result.num_text) == (4, 2, 1)
    assert result.complaints == [f"{path}:5: its image can't be read; download the file again"]
    assert (result.folder.num_files, result.folder.num_named, result.folder.missing) == (2, 2, [])
    assert "5 records, the published sft_i2t.parquet has 2,904,511" in result.remark


def test_parquet_files_that_cannot_be_used(tmp_path):
    out, images = tmp_path / "out.jsonl", tmp_path / "images"
    path = write(tmp_path, "minimind-v-pretrain", [embedded("<image>", RED)])
    with pytest.raises(SettingError, match="carries its images in pretrain_i2t.parquet; name a folder"):
        prepare("minimind-v-pretrain", path, out)
    with pytest.raises(SettingError, match="leave --image-prefix out"):
        prepare("minimind-v-pretrain", path, out, image_prefix="a/", image_folder=images)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(SettingError, match="has the columns text, not conversations, image_bytes"):
        prepare("minimind-v-pretrain", path, out, image_folder=images)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SettingError, match="is no whole Parquet file"):
        prepare("minimind-v-pretrain", path, out, image_folder=images)


def test_the_folder_is_counted(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).touch()
    raw = [llava("a.jpg"), llava("a.jpg"), llava("none.jpg")]
    write(tmp_path, "llava-pretrain", raw)
    result = prepare("llava-pretrain", tmp_path, tmp_path / "out.jsonl", image_folder=folder)
    assert (result.folder.num_files, result.folder.num_named) == (3, 2)
    assert (result.folder.missing, result.folder.superfluous) == (["none.jpg"], ["b.jpg", "c.jpg"])
    assert result.num_written == 2 and len(result.complaints) == 1


def test_files_of_one_shape_are_read_in_the_order_of_their_names(tmp_path):
    for number, side in ((1, 8), (0, 16)):
        row = pair({"bytes": jpeg("red", side), "path": "a.jpg"}, chosen=f"Side {side}.")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"RLAIF-V-Dataset_00{number}.parquet")
    result = prepare("rlaif-v", tmp_path, tmp_path / "out.jsonl", image_folder=tmp_path / "images")
    assert [record["chosen"] for record in written(tmp_path / "out.jsonl")] == ["Side 16.", "Side 8."]
    assert [record["id"] for record in written(tmp_path / "out.jsonl")] == ["0", "1"]
    assert result.remark.startswith(f"{tmp_path} has 2 records, the published RLAIF-V-Dataset_*.parquet has 83,132")


def test_pairs_that_prefer_nothing_are_left_out(tmp_path):
    raw = [pair("1.png", chosen="A dog. "), pair("1.png", rejected=""), pair("1.png", chosen=None), pair("2.png")]
    path = write(tmp_path, "mmpr-v1.2", raw)
    result = prepare("mmpr-v1.2", tmp_path, tmp_path / "out.jsonl", image_prefix="images/")
    assert [record["image"] for record in written(tmp_path / "out.jsonl")] == ["images/set/2.png"]
    assert [text.split(";")[0] for text in result.complaints] == [
        f"{path}:1: both answers are 'A dog. '",
        f"{path}:2: the rejected answer is empty",
        f"{path}:3: no chosen answer",
    ]


def test_images_without_a_place_come_first(tmp_path):
    """As many placeholders as images, before the question; those that are there stay."""
    raw = [pair(["1.png", "2.png"]), pair(["1.png", "2.png"], question="Is <image> like <image>?")]
    write(tmp_path, "mmpr-v1.1", raw)
    prepare("mmpr-v1.1", tmp_path, tmp_path / "out.jsonl")
    first, second = (parse_pair(record, "f:1").turns[0].parts for record in written(tmp_path / "out.jsonl"))
    assert [part if isinstance(part, str) else part.name for part in second] == [
        "Is ", "set/1.png", " like ", "set/2.png", "?",
    ]  # fmt: skip
    assert [part.name for part in first if not isinstance(part, str)] == ["set/1.png", "set/2.png"]
    assert first[-1].endswith("What?")


def test_the_best_answer_against_the_worst(tmp_path):
    """Means over the rated aspects: 4, 5, 5 (of equal ones the first), 1."""
    best = rated(("3", "5", "4"), ("N/A", "5", "5"), "555", ("1", "N/A", "N/A"), ("N/A",) * 3)
    raw = [best, rated("333", "234"), rated("555", ("N/A",) * 3), rated("455", ("4", "high", "1"))]
    path = write(tmp_path, "vlfeedback", raw)
    result = prepare("vlfeedback", path, tmp_path / "out.jsonl")
    assert [(record["chosen"], record["rejected"]) for record in written(tmp_path / "out.jsonl")] == [
        ("Answer 1.", "Answer 3.")
    ]
    assert result.complaints[:2] == [
        f"{path}:2: its 2 rated answers all have a mean rating of 3",
        f"{path}:3: 1 of its 2 answers rated, a pair takes two",
    ]
    assert "not a record of vlfeedback_80k.jsonl (could not convert string to float: 'high')" in result.complaints[2]


def test_answers_as_an_object_of_lists(tmp_path):
    row = rated("455", "123", image={"bytes": RED, "path": "v1.jpg"})
    row["completions"] = {key: [each[key] for each in row["completions"]] for key in row["completions"][0]}
    write(tmp_path, "vlfeedback-parquet", [row])
    prepare("vlfeedback-parquet", tmp_path, tmp_path / "out.jsonl", image_folder=tmp_path / "images")
    assert written(tmp_path / "out.jsonl")[0]["chosen"] == "Answer 0."
