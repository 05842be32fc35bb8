"""Records of other trainers: the same conversation gives the same ids, labels and tiles in each form."""

import importlib.util
import os

import pytest

from tests.conftest import ROOT
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.index import scan
from xtuner_plugins.datasets.records.kinds import BY_NAME, DIRECTLY, KINDS, describe, recognize, rewrite
from xtuner_plugins.datasets.records.records import parse_record

CASES = int(os.environ.get("FUZZ_CASES", 600))
spec = importlib.util.spec_from_file_location("fuzz_kinds", ROOT / "benchmarks/fuzz_kinds.py")
fuzz_kinds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_kinds)

TALK = ["<image>\nWhat color?", "Red.", "And this: <image>?", "A cat."]
BOX = "<ref>it</ref><box>[[100, 100, 500, 500]]</box>"
OURS = {"system": "Be brief.", "image": ["a.png", "b.png"], "conversations": fuzz_kinds.turns(TALK)}
GROUNDED = {"image": "b.png", "conversations": fuzz_kinds.turns(["<image>\nWhere?", BOX])}
LABELLED = {"image": "b.png", "conversations": fuzz_kinds.turns(["Picture 1: <image>\nWhere?", BOX])}
REST = {"system": "Be brief.", "images": ["a.png", "b.png"]}
FORMS = {  # kind: records and ours
    "llava": (OURS, OURS),
    "messages": ({**REST, "messages": fuzz_kinds.turns(TALK, "role")}, OURS),
    "sharegpt": ({**REST, "conversations": fuzz_kinds.turns(TALK, "from", ("USER", "chatgpt"))}, OURS),
    "swift-query": ({**REST, "history": [TALK[:2]], "query": TALK[2], "response": TALK[3]}, OURS),
    "alpaca": ({**REST, "history": [TALK[:2]], "instruction": TALK[2], "input": "", "output": TALK[3]}, OURS),
    "swift-conversation": (
        {
            "system_prompt": "Be brief.",
            "images": ["a.png", "b.png"],
            "conversation": [{"human": TALK[0], "assistant": TALK[1]}, {"human": TALK[2], "assistant": TALK[3]}],
        },
        OURS,
    ),
    "swift-objects": (
        {
            "images": ["b.png"],
            "objects": {"ref": ["it"], "bbox": [[36, 12, 180, 60]]},
            "messages": fuzz_kinds.turns(["<image>\nWhere?", "<ref-object><bbox>"], "role"),
        },
        GROUNDED,
    ),
    "qwen-vl": (
        {
            "conversations": fuzz_kinds.turns(
                ["Picture 1: <img>b.png</img>\nWhere?", "<ref>it</ref><box>(100,100),(500,500)</box>"],
                "from",
                ("user", "assistant"),
            )
        },
        LABELLED,
    ),
}


@pytest.fixture
def load(data_base, write_data, make_image):
    """load(records) -> the samples, ids, labels and tiles as lists."""
    make_image("a.png", 100, 90)
    folder = make_image("b.png", 360, 120)

    def load(records):
        path = write_data(records)
        dataset = MultimodalDataset(data_base, path, folder, cache_dir=path + ".cache")
        lengths = dataset.lengths(0, num_workers=0)
        samples = [dataset[number] for number in range(len(dataset))]
        parts = [[sample[key].tolist() for key in ("input_ids", "labels", "tiles")] for sample in samples]
        assert not any("dropped" in sample for sample in samples)
        return parts, [column.tolist() for column in (lengths.text_tokens, lengths.supervised, lengths.media_ends)]

    return load


def test_every_form_gives_the_ids_labels_and_tiles_of_ours(load):
    theirs, ours = (load([forms[place] for forms in FORMS.values()]) for place in (0, 1))
    assert theirs == ours and all(parts[2] for parts in theirs[0])
    assert set(FORMS) == {kind.name for kind in KINDS if kind.reading == DIRECTLY}


@pytest.mark.parametrize("name", FORMS)
def test_every_kind_is_recognized_and_left_unchanged(name):
    raw = FORMS[name][0]
    before = repr(raw)
    assert recognize(raw).name == name
    record = parse_record(raw, "a.jsonl:1")
    assert repr(raw) == before and not record.warnings and record.source == "a.jsonl:1"


@pytest.mark.parametrize("kind", fuzz_kinds.WRITERS)
def test_random_and_broken_records_of_each_kind(kind):
    counts = fuzz_kinds.run(kind, CASES, 1)
    assert counts.total() == CASES and min(counts["equal"], counts["read"], counts["refused"]) > CASES // 20


def turns(*texts):
    return fuzz_kinds.turns(list(texts), "role")


IMAGE_INSIDE = [{"type": "image_url", "image_url": {"url": fuzz_kinds.data_url()}}, {"type": "text", "text": "What?"}]
REFUSED = [
    (
        {"messages": [{"role": "user", "content": IMAGE_INSIDE}, *turns("a", "b")[1:]]},
        "convert",
        "convert 'my data/b.json'",
    ),
    ({"images": ["data:image/png;base64,AA"], "messages": turns("<image>a", "b")}, "convert", "--from data-url"),
    ({"set": {"root": "r", "annotation": "a.jsonl"}}, "no_conversations", "data_paths"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "no_conversations", "PreferenceDataset"),
    ({"query": "a", "response": "b", "rejected_response": "c"}, "no_conversations", "PreferenceDataset"),
    ({"query": "a", "response": None}, "turn_content", ""),
    ({"query": 3, "response": "b"}, "turn_content", ""),
    ({"query": "a", "response": "b", "history": [["c"]]}, "history", ""),
    ({"query": "a", "response": "b", "history": "[['c', 'd']]"}, "history", ""),
    ({"query": "a", "response": "b", "system": "s", "system_prompt": "t"}, "system_twice", ""),
    ({"query": "<image>a", "response": "b"}, "image_count", ""),
    ({"instruction": ["a"], "output": "b"}, "turn_content", ""),
    ({"instruction": "a", "input": 3, "output": "b"}, "turn_content", ""),
    ({"conversation": "a"}, "conversations_type", ""),
    ({"conversation": [{"human": "a"}]}, "turn_keys", ""),
    ({"conversation": [{"human": "a", "assistant": "b", "tool": "c"}]}, "turn_keys", ""),
    ({"conversations": [{"from": "user", "value": "<img>a.jpg</img><quad>(1,2)</quad>"}, *turns("a")]}, "boxes", ""),
    ({"images": ["a.jpg"], "messages": turns("<image><img>a.jpg</img>", "b")}, "foreign_form", ""),
    ({"messages": [{"role": "tool_call", "content": "{}"}, *turns("a", "b")]}, "turn_role", ""),
    ({"text": "a"}, "no_conversations", ""),
]


@pytest.mark.parametrize("raw, reason, remedy", REFUSED, ids=[f"{row[1]}-{place}" for place, row in enumerate(REFUSED)])
def test_what_cannot_be_read_is_refused_with_what_to_do(raw, reason, remedy):
    with pytest.raises(RecordError) as refused:
        parse_record(raw, "my data/b.json:7")
    assert refused.value.reason == reason and str(refused.value).startswith("my data/b.json:7: ")
    assert remedy in refused.value.remedy and refused.value.remedy


@pytest.mark.parametrize("extra", [{"tools": "[{}]"}, {"system_prompt": "s"}, {"kto_tag": False}], ids=str)
def test_settings_of_others_that_are_not_read_are_warned_about(extra):
    record = parse_record({"messages": turns("a", "b"), **extra}, "f:1")
    assert [warning.reason for warning in record.warnings] == ["ignored_key"]


def test_the_kinds_of_a_file(write_data):
    path = write_data([FORMS["alpaca"][0], FORMS["swift-query"][0], FORMS["swift-query"][0], {"text": 1}, [1]])
    assert describe(scan(path)) == "swift-query, alpaca"


def test_ours_need_no_rewriting():
    assert rewrite(OURS, "f:1") is None and rewrite({"text": "a"}, "f:1") is None
    assert list(BY_NAME) == [kind.name for kind in KINDS] and all(kind.form for kind in KINDS)
