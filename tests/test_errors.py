"""Errors say what is wrong, where, and what to do; checks of settings raise them."""

import pickle

import numpy as np
import pytest

from xtuner_plugins.errors import DataError, MediaError, RecordError, SettingError, check_choice, check_whole


def test_errors_travel_through_pickle():
    error = RecordError("json", "not JSON", "mend it", "f:3")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "f:3: not JSON; mend it" and again.reason == "json"


def test_a_message_has_place_problem_and_remedy():
    assert str(DataError("json", "not JSON", "mend it", "f:3")) == "f:3: not JSON; mend it"
    assert str(DataError("json", "not JSON")) == "not JSON"


def test_an_error_of_an_image_becomes_one_of_its_record():
    error = MediaError("image_missing", "no such image", "correct the name", "a.png").in_record("f:3")
    assert type(error) is RecordError and error.reason == "image_missing"
    assert str(error) == "f:3: a.png: no such image; correct the name"
    assert str(MediaError("image_mode", "floats").in_record("f:3")) == "f:3: floats"


@pytest.mark.parametrize("value", [True, 1.0, "2", None, 0, -1, np.int64(0)])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(SettingError, match="^seed=.* can't be used; give a whole number, 1 or more$"):
        check_whole("seed", value, 1)


def test_whole_numbers_come_back_as_int():
    assert check_whole("seed", np.int64(3), 3) == 3 and type(check_whole("seed", np.int64(3), 3)) is int


def test_one_of_a_few():
    assert check_choice("route", "a", ("a", "b")) == "a" and check_choice("group_by", None, (None, "a")) is None
    with pytest.raises(SettingError, match="^route='c' is unknown; it is one of None, a$") as caught:
        check_choice("route", "c", (None, "a"))
    assert caught.value.reason == "route"
