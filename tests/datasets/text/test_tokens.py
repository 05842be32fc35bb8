"""The tokenizer as training uses it."""

import copy
from dataclasses import replace

import pytest

from xtuner_plugins.datasets import SettingError
from xtuner_plugins.datasets.records.records import parse_record
from xtuner_plugins.datasets.text.templates import Segment, Template, get_template
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.errors import RecordError
from xtuner_plugins.hub.conversation import get_conv_template
from xtuner_plugins.toy.tokenizer import build_tokenizer


def test_what_can_not_be_used_is_refused(tmp_path, qa):
    for build, words in [
        (lambda: TextTokenizer.from_pretrained(build_tokenizer(tmp_path / "t")), "lacks <img>"),
        (lambda: TextTokenizer.from_pretrained(tmp_path / "none"), "none' can't be loaded"),
        (lambda: TextTokenizer.from_pretrained(tmp_path), "can't be loaded"),
        (lambda: TextTokenizer(object(), "mine"), "mine is a slow tokenizer; add its tokenizer.json"),
        (lambda: get_template("no-such"), "internvl2_5"),
    ]:
        with pytest.raises(SettingError, match=words):
            build()
    bare = Template(replace(get_conv_template("internvl2_5"), system_template="", system_message=None))
    assert bare.segments(parse_record(qa(), "f:1"))[0] == Segment("<|im_start|>user\n", literal=True)
    with pytest.raises(RecordError, match="no place"):
        bare.segments(parse_record(qa(system="S"), "f:1"))


def test_ids_are_written_out_and_a_fingerprint_tells_tokenizers_apart(text_tokenizer, hf_tokenizer):
    ids = [text_tokenizer.image_start_id, *text_tokenizer.encode("a bus"), text_tokenizer.ids["<|im_end|>"]]
    assert text_tokenizer.decode(ids) == "<img>a bus<|im_end|>" and text_tokenizer.decode([]) == ""
    more = copy.deepcopy(hf_tokenizer)
    more.add_tokens(["<more>"])
    found = [TextTokenizer(each).fingerprint() for each in (hf_tokenizer, more)]
    assert found[0] == text_tokenizer.fingerprint() != found[1]
