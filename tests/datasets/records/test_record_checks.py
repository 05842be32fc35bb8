"""Forms of other projects' data: each is an error, a warning, or done; what only looks like one passes."""

import ast

import pytest

from tests.conftest import ROOT
from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.records.boxes import normalize_boxes
from xtuner_plugins.datasets.records.record_checks import REASONS, reasons_table
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.templates import get_template
from xtuner_plugins.hub.constants import IGNORE_INDEX
from xtuner_plugins.hub.conversation import TEMPLATES


def parse(question="What?", answer="A bus.", **extra):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return normalize_boxes(parse_record({"conversations": turns, **extra}, "f:7"))


WARNED = [
    (dict(question="Is <Image> a React component?"), "foreign_form"),
    (dict(question="How do I close <audio> in HTML?"), "foreign_form"),
    (dict(question="<image>\nIs that <image_1>?", image="a.jpg"), "foreign_form"),
    (dict(question="What is <bbox> in KITTI's XML?"), "foreign_form"),
    (dict(answer="Write <img>a.jpg</img>."), "foreign_form"),
    (dict(answer="<|image_pad|>"), "foreign_form"),
    (dict(answer="<|box_start|>(1,2),(3,4)<|box_end|>"), "foreign_form"),
    (dict(question="<image>\nTag?", answer="Write <image> in RSS.", image="a.jpg"), "media_role"),
    (dict(answer="<box>nothing</box>"), "grounding"),
    (dict(answer="<ref>it"), "grounding"),
    (dict(answer="<box>[[0.1, 0.2, 0.5, 0.6]]</box>"), "grounding"),
    (dict(image="a.jpg", audio="a.wav"), "unread_key:audio"),
    (dict(tools="[{}]"), "unread_key:tools"),
]


PLAIN = [
    dict(question="<b>bold</b> <video controls> <img src='a.png'> <input> a < b > c <ref> </ref>"),
    dict(question="<image>\n<image>", image=["a.jpg", "b.jpg"], width=3, height=4),
    dict(answer="<ref>it</ref><box>[[0, 0, 1000, 1000]]</box><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"),
    dict(answer="<|im_end|> ends a turn", id="7", audio=None, loss=None),
    dict(system="", image_path=""),
]


def test_what_may_be_text_is_a_warning_with_its_place():
    for record, reason in WARNED:
        warnings = parse(**record).warnings
        assert reason in [warning.reason for warning in warnings], record
        assert all(str(warning).startswith("f:7: ") and warning.remedy for warning in warnings)
    for record in PLAIN:
        assert parse(**record).warnings == (), record


def with_turns(*turns):
    return {"messages": [{"role": role, "content": text, **extra} for role, text, extra in turns]}


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_an_answer_without_loss_is_context_as_in_chat(data_base, write_data, template):
    """The ids are those of the same record with loss; its labels, end token included, are -100."""
    turns = [("user", "A?", {}), ("assistant", " Yes <ref>x</ref>.", {}), ("user", "B?", {}), ("assistant", "No.", {})]
    quiet = [*turns[:1], (*turns[1][:2], {"loss": False}), *turns[2:]]
    path = write_data([with_turns(*turns), with_turns(*quiet)])
    dataset = MultimodalDataset(data_base, path, template=template)
    loud, silent = (dataset[index] for index in range(2))
    assert loud["input_ids"].tolist() == silent["input_ids"].tolist()
    text = dataset.tokenizer
    learned = [token for token in silent["labels"].tolist() if token != IGNORE_INDEX]
    conversation = get_template(template).conversation
    assert text.decode(learned) == conversation.answer_prefix + "No." + conversation.stop_token
    assert len([t for t in loud["labels"].tolist() if t != IGNORE_INDEX]) > len(learned)
    lengths = dataset.lengths(0, num_workers=0)
    assert lengths.supervised.tolist() == [(s["labels"] != IGNORE_INDEX).sum().item() for s in (loud, silent)]
    assert lengths.text_tokens[0] == lengths.text_tokens[1] == len(loud["input_ids"])


def test_empty_answers_never_stop_a_run_and_are_counted(data_base, write_data, qa):
    """One of several isn't learned; a record of nothing else is left out, with the default policy, and said."""
    two = with_turns(("user", "A?", {}), ("assistant", " \n", {}), ("user", "B?", {}), ("assistant", "No.", {}))
    path = write_data([qa(), qa(answer=""), two])
    dataset = MultimodalDataset(data_base, path)
    assert dataset.on_bad_sample == "raise" and dataset[1]["dropped"] == "empty_answer"
    learned = [token for token in dataset[2]["labels"].tolist() if token != IGNORE_INDEX]
    assert dataset.tokenizer.decode(learned) == "No.<|im_end|>"
    _, _, fates = dataset.layout(num_workers=0)
    assert dataset.usable(fates).tolist() == [0, 2]
    (report,) = check_dataset(dataset, num_workers=0)
    assert not report.complaints and report.warnings == {"empty_answer": 2} and len(report.left_out) == 1
    dataset = MultimodalDataset(data_base, write_data([qa(answer=""), {"text": 1}]))
    with pytest.raises(RecordError, match="no conversation"):  # a broken record beside an empty one
        dataset.usable(dataset.layout(num_workers=0)[2])


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_system_messages_are_those_of_chat(data_base, hf_tokenizer, template):
    """No system, an empty key, an empty turn and a message: training's prompt is what chat builds of the same."""
    from xtuner_plugins.datasets.text.conversation import encode
    from xtuner_plugins.datasets.text.tokens import TextTokenizer
    from xtuner_plugins.hub.chat_methods import ChatMethods

    default = TEMPLATES[template][1]
    turn = [{"from": "system", "value": ""}]
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A bus."}]
    for raw, message in [
        ({"conversations": talk}, default),
        ({"conversations": talk, "system": ""}, default),
        ({"conversations": talk, "system": "  "}, default),
        ({"conversations": turn + talk}, ""),
        ({"conversations": turn + talk, "system": ""}, ""),
        ({"conversations": talk, "system": "Be brief."}, "Be brief."),
    ]:
        model = ChatMethods()
        model.template, model.system_message, model.num_image_token = template, message, 16
        prompt = model.build_prompt_ids(hf_tokenizer, "What?")
        record = parse_record(raw, "f:1")
        ids = encode(record, get_template(template), TextTokenizer(hf_tokenizer)).input_ids.tolist()
        assert ids[: len(prompt)] == prompt, raw
        assert [warning.reason for warning in record.warnings] == (["empty_system"] if message == "" else [])


def test_the_pages_table_of_reasons_is_that_of_the_code():
    for page in ("docs/data.md", "docs/data_zh-CN.md"):
        assert reasons_table() in (ROOT / page).read_text(encoding="utf-8"), "python -m ...records.record_checks"


def test_every_reason_about_a_record_is_in_the_table():
    found = set()
    for path in (ROOT / "xtuner_plugins/datasets/records").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("fail", "warn", "RecordError"):
                words = [arg.value for arg in node.args[:3] if isinstance(arg, ast.Constant)]
                found |= {word for word in words[:1] if word.isidentifier()}
    assert len(found) > 30 and found - {*REASONS, "open_files", "image_size", "image_unreadable"} == set()
