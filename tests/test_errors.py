"""Errors say what is wrong, where, and what to do."""

import pickle

from xtuner_plugins.errors import DataError, MediaError, RecordError


def test_messages_have_place_problem_and_remedy():
    again = pickle.loads(pickle.dumps(RecordError("json", "not JSON", "mend it", "f:3")))
    assert str(again) == "f:3: not JSON; mend it" and again.reason == "json"
    assert str(DataError("json", "not JSON")) == "not JSON"
    error = MediaError("image_missing", "no such image", "correct the name", "a.png").in_record("f:3")
    assert type(error) is RecordError and error.reason == "image_missing"
    assert str(error) == "f:3: a.png: no such image; correct the name"
    assert str(MediaError("image_mode", "floats").in_record("f:3")) == "f:3: floats"
