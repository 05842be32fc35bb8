"""A conversation in the terminal: lines are questions or commands.

An answer is text from outside: a model can write escape codes, by itself or because an image tells it to, and a
terminal obeys them (they clear the screen, set the clipboard, or send input). The same holds for names of files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.images.media import image_size, load_image
from .drawing import with_boxes

if TYPE_CHECKING:
    from .session import ChatSession, Turn

COMMANDS = {
    "/image": "PATH  show an image with the next question; several times for several images",
    "/clear": "      forget the conversation and its images",
    "/system": "TEXT forget the conversation and begin one with this system prompt; without TEXT show it",
    "/tiles": "N     cut images into at most N tiles from now on; without N show how many",
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
        out: Folder for images with drawn boxes.

    Raises:
        MediaError: An image can't be read.
    """

    def __init__(
        self,
        session: ChatSession,
        options: Mapping[str, Any],
        images: Sequence[str | Path] = (),
        out: str | Path = ".",
    ):
        self.session, self.options, self.out = session, dict(options), Path(out)
        self.turns: list[Turn] = []
        self.pending = [str(path) for path in images]
        for path in self.pending:
            image_size(path)

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
            except (ValueError, OSError) as error:
                print(f"error: {printable(str(error))}", file=sys.stderr)
                status = status if interactive else 1
            except RuntimeError as error:
                if "out of memory" not in str(error) or not interactive:
                    raise
                print("error: out of memory; lower /tiles, or /clear the conversation", file=sys.stderr)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print("\n(interrupted; what was asked is forgotten, /quit leaves)")

    def handle(self, line: str) -> bool:
        """Carries out a line; False when it was the last one.

        Raises:
            ValueError: An unknown command, an image that can't be read, or a question that can't be asked.
            OSError: Boxes can't be drawn into a file.
        """
        name, _, rest = line.partition(" ")
        actions: dict[str, Callable[[str], object]] = {
            "/image": self._attach,
            "/clear": self._clear,
            "/system": self._system,
            "/tiles": self._tiles,
            "/help": lambda _: print("\n".join(f"{command} {text}" for command, text in COMMANDS.items())),
        }
        if name == "/quit":
            return False
        if not line.startswith("/"):
            self.ask(line)
        elif name not in actions:
            raise ValueError(f"no command {name}; there are {', '.join(COMMANDS)}")
        elif name == "/image" and not rest.strip():
            raise ValueError("/image needs the path of an image")
        else:
            actions[name](rest.strip())
        return True

    def ask(self, question: str) -> str:
        """Prints the answer while it comes, and returns it; boxes in it are drawn into a file.

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
        self._save_boxes(answer)
        return answer.strip()

    def _attach(self, path: str) -> None:
        path = str(Path(path.strip("\"'")).expanduser())
        width, height = image_size(path)
        self.pending.append(path)
        print(f"({printable(path)}, {width} x {height}, goes with the next question)")

    def _clear(self, _: str = "") -> None:
        self.turns, self.pending = [], []
        print("(a new conversation)")

    def _system(self, text: str) -> None:
        if text:
            self.options["system"] = text
            self._clear()
        else:
            system = self.options.get("system") or self.session.model.system_message
            print(printable(system or "(no system prompt)"))

    def _tiles(self, text: str) -> None:
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"/tiles {text}: give a whole number, 1 or more")
            self.options["max_tiles"] = int(text)
        most = self.options.get("max_tiles") or self.session.tiling.max_tiles
        print(f"(at most {most} tiles per image, thumbnail not counted)")

    def _save_boxes(self, answer: str) -> None:
        """Draws the boxes of an answer on the latest image of the conversation."""
        shown = [path for turn in self.turns for path in turn.images]
        if not shown or (drawn := with_boxes(load_image(shown[-1]), answer)) is None:
            return
        stem, number = Path(shown[-1]).stem, 1
        while (path := self.out / f"{stem}.boxes-{number}.png").exists():
            number += 1
        drawn.save(path)
        print(printable(f"(boxes drawn on {shown[-1]}: {path})"))
