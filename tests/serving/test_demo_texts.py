"""The words of the page exist in both languages."""

from xtuner_plugins.serving.demo_texts import MESSAGES, language_texts, message


def test_the_browser_decides_the_language():
    assert message("empty", "zh-CN,zh;q=0.9,en;q=0.8") == MESSAGES["empty"][1]
    assert message("empty", "en-US,zh;q=0.5") == message("empty", None) == MESSAGES["empty"][0]
    texts = language_texts()
    assert texts["en"].keys() == texts["zh-CN"].keys() and texts["zh-CN"]["page-stop"] == "停止"
