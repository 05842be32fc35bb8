"""A conversation in the terminal: lines are questions or commands.

An answer is text from outside: a model can write escape codes, by itself or because an image tells it to, and a
terminal obeys them (they clear the screen, set the clipboard, or send input). The same holds for names of files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.images.media import image_size

if TYPE_CHECKING:
    from .session import ChatSession, Turn

COMMANDS = {
    "/image": "PATH  show an image with the next question; several times for several images",
    "/clear": "      forget the conversation and its images",
    "/system": "TEXT forget the conversation and begin one with this system prompt",
    "/tiles": "N     cut images into at most N tiles from now on",
    "/help": "       show this",
    "/quit": "       leave (so does the end of the input)",
}
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}  # symbols for control codes
_SHOWN |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def printable(text: str) -> str:
    """The text with a visible symbol in place of each control code; line breaks and tabs stay.

    Works on pieces of a text too: without its first character, what is left of an escape code is plain text.
    """
    return text.translate(_SHOWN)


class TerminalChat:
    """What is typed, on one side, and the session, on the other.

    Args:
        session: Answers.
        options: Of `ChatSession.reply`.
        images: Files of images for the first question.
    """

    def __init__(self, session: ChatSession, options: Mapping[str, Any], images: Sequence[str] = ()):
        self.session, self.options = session, dict(options)
        self.turns: list[Turn] = []
        self.pending = list(images)

    def run(self) -> int:
        """Reads lines until /quit or the end; without a terminal, an error on the way shows in the status."""
        interactive, status = sys.stdin.isatty(), 0
        if interactive:
            import readline  # noqa: F401  arrow keys edit the line and recall earlier ones

            print(f"Ask, or type one of {', '.join(COMMANDS)}.")
        while True:
            try:
                line = input("> " if interactive else "").strip()
                if line and not self.handle(line):
                    return status
            except EOFError:
                return status
            except (ValueError, OSError, RuntimeError) as error:
                said = str(error)
                if isinstance(error, RuntimeError):
                    if "out of memory" not in said or not interactive:
                        raise
                    said = "out of memory; lower /tiles, or /clear the conversation"
                print(f"error: {printable(said)}", file=sys.stderr)
                status = status if interactive else 1
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print("\n(interrupted; what was asked is forgotten, /quit leaves)")

    def handle(self, line: str) -> bool:
        """Carries out a line; False when it was the last one.

        Raises:
            ValueError: An unknown command, an image that can't be read, or a question that can't be asked.
        """
        name, _, rest = line.partition(" ")
        match name, rest.strip():
            case "/image", path if path:
                path = str(Path(path.strip("\"'")).expanduser())
                width, height = image_size(path)
                self.pending.append(path)
                print(f"({printable(path)}, {width} x {height}, goes with the next question)")
            case "/tiles", number if number.isdecimal() and int(number):
                self.options["max_tiles"] = int(number)
                print(f"(at most {int(number)} tiles per image, thumbnail not counted)")
            case ("/system" | "/clear") as command, text if text or command == "/clear":
                self.options |= {"system": text} if command == "/system" else {}
                self.turns, self.pending = [], []
                print("(a new conversation)")
            case "/help", _:
                print("\n".join(f"{command} {text}" for command, text in COMMANDS.items()))
            case "/quit", _:
                return False
            case name, _ if name in COMMANDS:
                raise ValueError(f"type {name} {COMMANDS[name]}")
            case name, _ if name.startswith("/"):
                raise ValueError(f"no command {name}; there are {', '.join(COMMANDS)}")
            case _:
                self.ask(line)
        return True

    def ask(self, question: str) -> None:
        """Prints the answer while it comes.

        Raises:
            ValueError: The question's placeholders don't fit its images.
        """
        from .session import Turn

        turn, answer = Turn(question, tuple(self.pending)), ""
        for piece in self.session.reply([*self.turns, turn], **self.options):
            print(printable(piece if answer else piece.lstrip()), end="", flush=True)
            answer = (answer + piece).lstrip()
        print(flush=True)
        self.turns.append(replace(turn, answer=answer.strip()))
        self.pending = []
