"""What the terminal is sent: text without control codes, and images where the terminal says that it draws them.

An answer is text from outside: a model can write escape codes, by itself or because an image tells it to, and a
terminal obeys them (they clear the screen, set the clipboard, or send input). The same holds for names of files.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from PIL import Image

MOST_COLUMNS, MOST_LINES = 60, 20  # of a drawing
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}  # symbols for control codes
_SHOWN |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def printable(text: str) -> str:
    """The text with a visible symbol in place of each control code; line breaks and tabs stay.

    Works on pieces of a text too: without its first character, what is left of an escape code is plain text.
    """
    return text.translate(_SHOWN)


class Drawings:
    """Draws images between the lines of a conversation.

    The terminal is asked once, before the first image: it draws pixels if it announces Sixel or Kitty's graphics, and
    coloured half blocks if it announces 24-bit colours in ``COLORTERM``. Else, or without a terminal on both sides,
    nothing is drawn and nothing is asked.

    Args:
        wanted: False draws nothing.
    """

    def __init__(self, wanted: bool = True):
        self._wanted = wanted and _is_terminal()
        self._kind: Any = None
        self._asked = False

    def show(self, image: Image.Image) -> bool:
        """Draws the image; whether anything was drawn."""
        if self._wanted and not self._asked:
            self._asked, self._kind = True, _ask_terminal()
        if self._kind is None:
            return False
        from rich.console import Console

        size = shutil.get_terminal_size()
        console = Console(
            color_system="truecolor",
            width=min(MOST_COLUMNS, size.columns - 1),
            height=max(1, min(MOST_LINES, size.lines - 2)),
        )
        small = image.convert("RGB")
        small.thumbnail((1200, 1200))  # more than a drawing can show
        console.print(self._kind(small, width="auto", height="auto"))
        return True


def _is_terminal() -> bool:
    """Whether a person sits at both ends, at a terminal that is more than a printer."""
    streams = (sys.__stdin__, sys.__stdout__)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def _ask_terminal() -> Any:
    """The class of textual-image that this terminal can show; None if it announces nothing."""
    import termios

    try:
        from textual_image import renderable  # asks the terminal when it is imported
    finally:
        termios.tcflush(sys.__stdin__, termios.TCIFLUSH)  # a late reply would be taken for typed text
    if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
        return renderable.Image
    return renderable.HalfcellImage if os.environ.get("COLORTERM") in ("truecolor", "24bit") else None
