"""The words of the web page, in English and Chinese; the visitor's browser decides."""

from __future__ import annotations

PREFIX = "page-"  # the browser's script translates every label that is a key, also the name of a model
TEXTS = {
    "title": ("## Talk to a model about images", "## 与模型聊图片"),
    "ask": (
        "Ask about images or a video; drop files here",
        "就图片或视频提问；可把文件拖到这里",
    ),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重新回答"),
    "clear": ("New conversation", "新对话"),
    "settings": ("Settings", "设置"),
    "system": ("System prompt", "系统提示词"),
    "system_hint": ("empty: the model's own", "留空则用模型自带的"),
    "temperature": ("Temperature (0: the likeliest word)", "温度（0 表示总取最可能的词）"),
    "max_tiles": ("Most tiles per question's images, thumbnail not counted", "图块上限（不含缩略图）"),
    "max_new_tokens": ("Longest answer in tokens", "回答的最大 token 数"),
    "num_frames": ("Frames of a video", "视频抽取的帧数"),
    "seen": ("What the model sees", "模型看到的图块"),
    "boxes": ("Boxes of the answer", "回答中的框"),
}
# Filled in on the server, in the language that the request asks for.
MESSAGES = {
    "empty": ("Type a question first.", "请先输入问题。"),
    "nothing": ("There is no question to repeat yet.", "还没有可以重新回答的问题。"),
    "medium": ("{error}", "文件无法使用：{error}"),
    "model": ("{name}: {error}", "模型 {name} 出错：{error}"),
    "tiles": (
        "**{name}** sees {tiles} tiles of {side} x {side} pixels: {tokens} image tokens. {grids}",
        "**{name}** 看到 {tiles} 个 {side} x {side} 像素的图块，共 {tokens} 个图像 token。{grids}",
    ),
    "server_tiles": (
        "**{name}** is behind a server, which cuts images by its own settings.",
        "**{name}** 由服务器运行，图片按服务器自己的设置切块。",
    ),
}


def language_texts() -> dict[str, dict[str, str]]:
    """Words of the page by language, as `gradio.I18n` takes them."""
    english, chinese = ({f"{PREFIX}{key}": pair[index] for key, pair in TEXTS.items()} for index in (0, 1))
    return {"en": english, "zh-CN": chinese, "zh": chinese}


def message(key: str, accept_language: str | None, **values: object) -> str:
    """A message in the first language that a browser asks for, English unless that is Chinese.

    Args:
        key: In `MESSAGES`.
        accept_language: The request's header of that name.
        **values: Of the message's fields.
    """
    chinese = (accept_language or "").strip().lower().startswith("zh")
    return MESSAGES[key][chinese].format(**values)
