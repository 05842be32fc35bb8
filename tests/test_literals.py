import pytest

from xtuner_plugins.literals import holds_dict, read_literal


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"crop": 1.5}', {"crop": 1.5}),
        (" {'jpeg_quality':(75,100), 'crop':1.5} ", {"jpeg_quality": (75, 100), "crop": 1.5}),
        ("{}", {}),
        ("[{}]", [{}]),
        ("dict(a=1, b=[dict(c='x, y')])", {"a": 1, "b": [{"c": "x, y"}]}),
        ("[None, dict(windows_paths=True)]", [None, {"windows_paths": True}]),
        ('({"a": 1}, 2)', ({"a": 1}, 2)),
        ('{"a": 1}, dict(b=-2)', [{"a": 1}, {"b": -2}]),
        ('None,{"a": 1}', [None, {"a": 1}]),
        ('{"anon": true, "deep": {"x": false}}', {"anon": True, "deep": {"x": False}}),
    ],
)
def test_dicts_are_read(text, value):
    assert holds_dict(text)
    assert read_literal(text) == value and type(read_literal(text)) is type(value)


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"crop": 1.5', "'{' was never closed"),
        ("[dict(a=1]", "does not match"),
        ("{crop: 1.5}", "crop is no number and not in quotes"),  # a shell has taken the quotes
        ("dict(type=Adam)", "Adam is no number"),
        ('{"a": open("x")}', r"open\('x'\) is no literal"),
        ("dict([1])", r"dict\(\[1\]\) is no literal"),
        ("dict(**{'a': 1})", "is no literal"),
        ('{"a": 1 + "b"}', "malformed"),
        ("{[]: 1}", "unhashable"),
        ('{"a": ' + "[" * 5000, "."),
    ],
)
def test_mistakes_in_dicts_are_told(text, problem):
    assert holds_dict(text)
    with pytest.raises(ValueError, match=problem) as caught:
        read_literal(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "a,b",
        "{a,b}.jsonl",
        "{000..009}",
        "{{ fileDirname }}/x",
        "{{_base_.x}}",
        "s3://b/{a}.tar",
        "'{\"a\": 1}'",
    ]
    + ["[{a,b}]", "x/{a:1}.y", "dict", "dict(1).jsonl", "my_dict(a=1)", "a dict(", "[1, 2", "C:\\dict(x)\\{y}"],
)
def test_what_holds_no_dict(text):
    assert not holds_dict(text)
