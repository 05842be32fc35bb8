"""Forms of other projects' data: each is an error, a warning, or done; what only looks like one passes."""

import re

import pytest

from tests.conftest import ROOT
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.record_checks import REASONS, reasons_table
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.conversation import tokenize
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.hub.chat_methods import ChatMethods
from xtuner_plugins.hub.conversation import TEMPLATES

WARNED = [
    ("foreign_form", dict(question="Is <Image> a React component?")),
    ("foreign_form", dict(question="<image>\nIs that <image_1>?", image="a.jpg")),
    ("foreign_form", dict(question="What is <bbox> in KITTI's XML?")),
    ("foreign_form", dict(answer="Write <img>a.jpg</img>.")),
    ("foreign_form", dict(answer="<|box_start|>(1,2),(3,4)<|box_end|>")),
    ("grounding", dict(answer="<box>[[0.1, 0.2, 0.3, 1]]</box>", boxes="normalized")),
    *(("grounding", dict(answer=answer)) for answer in ("<box>a crate</box>", "<ref>it")),
    ("media_role", dict(question="<image>\nTag?", answer="Write <image> in RSS.", image="a.jpg")),
    ("unread_key:audio", dict(image="a.jpg", audio="a.wav")),
    (None, dict(question="<b>bold</b> <video controls> <img src='a.png'> <input> a < b > c <ref> </ref>")),
    (None, dict(answer="<ref>it</ref><box>[[0, 0, 1, 1]]</box><box>[[1, 2, 3, 4], [5, 6, 1000, 8]]</box>")),
    (None, dict(answer="<|im_end|> ends a turn", id="7", audio=None, loss=None)),
    (None, dict(system="", image_path="")),
]


def test_what_may_be_text_is_a_warning_with_its_place(qa):
    for reason, record in WARNED:
        record = parse_record(qa(**record), "f:7")
        assert (found := normalize_boxes(record)).turns == record.turns
        warnings = found.warnings
        assert {warning.reason for warning in warnings} == ({reason} if reason else set()), record
        assert all(str(warning).startswith("f:7: ") and warning.remedy for warning in warnings)


def talk(*answers):
    """A record of these answers: a text, and perhaps a mark of loss."""
    turns = [{"role": "assistant", "content": text, **dict(mark)} for text, *mark in answers]
    return {"messages": [turn for answer in turns for turn in ({"role": "user", "content": "Q?"}, answer)]}


def learned(dataset, sample):
    return dataset.tokenizer.decode([token for token in sample["labels"].tolist() if token >= 0])


def test_an_answer_without_loss_is_context_as_in_chat(data_base, write_data):
    text = " Yes <ref>x</ref>."
    path = write_data([talk([text], ["No."]), talk([text, ("loss", False)], ["No."])])
    for template in TEMPLATES:
        dataset = MultimodalDataset(data_base, path, template=template)
        loud, silent = dataset[0], dataset[1]
        assert loud["input_ids"].tolist() == silent["input_ids"].tolist()
        conversation = get_template(template).conversation
        expected = conversation.answer_prefix + "No." + conversation.stop_token
        assert learned(dataset, silent) == expected != learned(dataset, loud)


def test_empty_answers_never_stop_a_run_and_are_counted(data_base, write_data, qa):
    """One of several isn't learned; a record of nothing else is left out, with the default policy, and said."""
    dataset = MultimodalDataset(data_base, write_data([qa(), qa(answer=""), talk([" \n"], ["No."])]))
    assert dataset.on_bad_sample == "raise" and dataset[1]["dropped"] == "empty_answer"
    assert learned(dataset, dataset[2]) == "No.<|im_end|>"
    assert dataset.usable(dataset.layout(num_workers=0)[2]).tolist() == [0, 2]
    dataset = MultimodalDataset(data_base, write_data([qa(answer=""), {"text": 1}]))
    with pytest.raises(RecordError, match="no conversation"):  # a broken record beside an empty one
        dataset.usable(dataset.layout(num_workers=0)[2])


def test_system_messages_are_those_of_chat(hf_tokenizer, qa):
    """No system, an empty key, an empty turn and a message: training's prompt is what chat builds of the same."""
    talk, turn = qa("What?", "A bus."), {"from": "system", "value": ""}
    empty, model = {"conversations": [turn, *talk["conversations"]]}, ChatMethods()
    for model.template, (_, default, *_) in TEMPLATES.items():
        cases = [(talk, default), (talk | {"system": ""}, default), (talk | {"system": "  "}, default)]
        cases += [(empty, ""), (empty | {"system": ""}, ""), (talk | {"system": "Be brief."}, "Be brief.")]
        for raw, message in cases:
            model.system_message, model.num_image_token = message, 16
            prompt, record = model.build_prompt_ids(hf_tokenizer, "What?"), parse_record(raw, "f:1")
            pieces = tokenize(record, get_template(model.template), TextTokenizer(hf_tokenizer))
            ids = [token for piece in pieces for token in piece.ids]
            assert ids[: len(prompt)] == prompt, raw
            assert [warning.reason for warning in record.warnings] == (["empty_system"] if message == "" else [])


def test_the_table_of_reasons_has_all_of_the_code_and_is_that_of_the_pages():
    for page in ("docs/data.md", "docs/data_zh-CN.md"):
        assert reasons_table() in (ROOT / page).read_text(encoding="utf-8"), "python -m ...records.record_checks"
    code = "".join(path.read_text("utf-8") for path in (ROOT / "xtuner_plugins/datasets/records").glob("*.py"))
    found = set(re.findall(r'\b(?:fail|warn|RecordError)\((?:[\w.]+, )*"(\w+)"', code))
    assert len(found) > 30 and found <= {*REASONS, "open_files", "image_unreadable"}
