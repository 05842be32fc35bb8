import pytest

from xtuner_plugins.datasets.audit.texts import (
    hash_text,
    is_refusal,
    is_repetitive,
    normalize,
    opening_of,
    script_code,
    script_name,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is it? 42", "Latin"),
        ("这是什么？", "Chinese"),
        ("これは何ですか。漢字", "Japanese"),
        ("이것은 무엇입니까", "Korean"),
        ("Что это?", "Cyrillic"),
        ("ما هذا", "Arabic"),
        ("这是什么 animal in the picture", "Latin + Chinese"),
        ("请读出图中的英文单词 cat 和 dog 的意思是什么", "Chinese"),
        ("42 + 1 = 43", ""),
        ("", ""),
    ],
)
def test_scripts(text, name):
    assert script_name(script_code(text)) == name


def test_names_of_scripts_in_chinese():
    assert script_name(script_code("What is it? 这是什么呢"), in_chinese=True) == "中文 + 拉丁文字"


def test_normal_form():
    assert normalize("  A  Cat.\n") == normalize("a cat") == normalize("Ａ cat")
    assert hash_text(normalize("A cat")) != hash_text(normalize("A dog")) and hash_text("\ud800") < 1 << 64


def test_words_and_openings():
    assert words_of("It's 2 cats, 两只猫") == ["It", "s", "2", "cats", "两", "只", "猫"]
    assert opening_of("The cat sits here.") == "the cat sits" and opening_of("一只猫坐着") == "一只猫"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help.",
        "Sorry. As an AI language model, I",
        "很抱歉，我无法识别图中的人。",
        "作为一个AI语言模型",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["A sorry sight: an empty bowl.", "The door is closed.", "图中有一只猫。" * 40 + "抱歉"]
)
def test_no_refusals(text):
    assert not is_refusal(text)


def test_repetition():
    assert is_repetitive(words_of("the cat sat on the mat and " * 10))
    assert is_repetitive(words_of("图中有一只猫。" * 10))
    assert not is_repetitive(words_of("yes " * 10))  # too short
    assert not is_repetitive([str(number) for number in range(100)])
