"""Errors say what is wrong, where, and what to do; checks of settings raise them."""

import pickle

import numpy as np
import pytest

from xtuner_plugins.errors import DataError, MediaError, RecordError, SettingError, check_choice, check_whole


def test_messages_have_place_problem_and_remedy():
    again = pickle.loads(pickle.dumps(RecordError("json", "not JSON", "mend it", "f:3")))
    assert str(again) == "f:3: not JSON; mend it" and again.reason == "json"
    assert str(DataError("json", "not JSON")) == "not JSON"
    error = MediaError("image_missing", "no such image", "correct the name", "a.png").in_record("f:3")
    assert type(error) is RecordError and error.reason == "image_missing"
    assert str(error) == "f:3: a.png: no such image; correct the name"
    assert str(MediaError("image_mode", "floats").in_record("f:3")) == "f:3: floats"


def test_checks():
    for value in (True, 1.0, "2", None, 0, -1, np.int64(0)):
        with pytest.raises(SettingError, match="^seed=.* can't be used; give a whole number, 1 or more$"):
            check_whole("seed", value, 1)
    assert type(check_whole("seed", np.int64(3), 3)) is int and check_choice("group_by", None, (None, "a")) is None
    with pytest.raises(SettingError, match="^route='c' is unknown; it is one of None, a$"):
        check_choice("route", "c", (None, "a"))
