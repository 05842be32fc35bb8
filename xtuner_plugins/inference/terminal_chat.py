"""A conversation in the terminal: lines are questions, commands, or images dropped onto the window."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..datasets.images.media import load_image
from .drawing import with_boxes
from .terminal_output import Drawings, printable

if TYPE_CHECKING:
    from .session import ChatSession

COMMANDS = {
    "/image": "PATH  show an image with the next question; several times for several images",
    "/clear": "      forget the conversation and its images",
    "/system": "TEXT forget the conversation and begin one with this system prompt; without TEXT show it",
    "/tiles": "N     cut images into at most N tiles from now on; without N show how many",
    "/save": "FILE   write the conversation to FILE.json or FILE.md",
    "/help": "       show this",
    "/quit": "       leave (so does the end of the input)",
}
HELP = "\n".join(f"{name} {text}" for name, text in COMMANDS.items())


@dataclass(frozen=True)
class Turn:
    """A question, the files of the images that came with it, and the answer."""

    question: str
    images: tuple[str, ...]
    answer: str


class TerminalChat:
    """What is typed, on one side, and the session, on the other.

    Args:
        session: Answers.
        model: Its name, for saved conversations.
        options: Of `ChatSession.ask`.
        images: Files of images for the first question.
        out: Folder for images with drawn boxes.
        draws: Show images in the terminal too, where it can.

    Raises:
        MediaError: An image can't be read.
    """

    def __init__(
        self,
        session: ChatSession,
        model: str,
        options: Mapping[str, Any],
        images: Sequence[str | Path] = (),
        out: str | Path = ".",
        draws: bool = True,
    ):
        self.session, self.model, self.options, self.out = session, model, dict(options), Path(out)
        self.turns: list[Turn] = []
        self.pending: list[tuple[str, Image.Image]] = [(str(path), load_image(path)) for path in images]
        self.shown: tuple[str, Image.Image] | None = None  # the latest image of the conversation
        self._drawings = Drawings(draws)

    def run(self) -> int:
        """Reads lines until /quit or the end; without a terminal, an error on the way shows in the status."""
        interactive, status = sys.stdin.isatty(), 0
        if interactive:
            _edit_lines()
            print(f"Ask, drop an image onto this window, or type one of {', '.join(COMMANDS)}.")
            for path, image in self.pending:
                self._present(path, image)
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
            OSError: A file can't be written.
        """
        name, _, rest = line.partition(" ")
        if name in COMMANDS:
            return self._command(name, rest.strip())
        if paths := dropped_files(line):
            for path in paths:
                self._attach(path)
        elif line.startswith("/"):
            if "/" in line[1:]:
                raise ValueError(f"{line}: no such file")
            raise ValueError(f"no command {name}; there are {', '.join(COMMANDS)}")
        else:
            self.ask(line)
        return True

    def ask(self, question: str) -> str:
        """Prints the answer while it comes, and returns it; boxes in it are drawn into a file.

        Raises:
            ValueError: The question's placeholders don't fit its images.
        """
        answer = self.session.ask(question, [image for _, image in self.pending], stream=_printer(), **self.options)
        print(flush=True)
        self.turns.append(Turn(question, tuple(path for path, _ in self.pending), answer))
        self.shown = self.pending[-1] if self.pending else self.shown
        self.pending = []
        self._save_boxes(answer)
        return answer

    def save(self, path: str | Path) -> None:
        """Writes the conversation as JSON or Markdown, by the suffix of the path.

        Raises:
            ValueError: Another suffix, or the file exists.
            OSError: It can't be written.
        """
        path = Path(path).expanduser()
        write = {".json": self._as_json, ".md": self._as_markdown}.get(path.suffix.lower())
        if write is None:
            raise ValueError(f"/save {path}: give a name that ends in .json or .md")
        if path.exists():
            raise ValueError(f"/save {path}: the file exists; give another name")
        path.write_text(write(), encoding="utf-8")
        print(printable(f"(saved {path}, {len(self.turns)} questions)"))

    def _command(self, name: str, rest: str) -> bool:
        if name == "/quit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/image": self._images,
            "/clear": self._clear,
            "/system": self._system,
            "/tiles": self._tiles,
            "/save": self.save,
            "/help": lambda _: print(HELP),
        }
        if name in ("/image", "/save") and not rest:
            raise ValueError(f"{name} needs the path of {'an image' if name == '/image' else 'a file'}")
        actions[name](rest)
        return True

    def _images(self, rest: str) -> None:
        for path in named_files(rest):
            self._attach(path)

    def _attach(self, path: Path) -> None:
        image = load_image(path)
        self.pending.append((str(path), image))
        self._present(str(path), image)

    def _present(self, path: str, image: Image.Image) -> None:
        print(f"({printable(path)}, {image.width} x {image.height}, goes with the next question)")
        self._drawings.show(image)

    def _clear(self, rest: str = "") -> None:
        self.session.reset()
        self.turns, self.pending, self.shown = [], [], None
        print("(a new conversation)")

    def _system(self, text: str) -> None:
        if text:
            self.session.model.system_message = text
            self._clear()
        else:
            print(printable(self.session.model.system_message or "(no system prompt)"))

    def _tiles(self, text: str) -> None:
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"/tiles {text}: give a whole number, 1 or more")
            self.session.limit_tiles(int(text))
        print(f"(at most {self.session.tiling.max_tiles} tiles per image, thumbnail not counted)")

    def _save_boxes(self, answer: str) -> None:
        if self.shown is None or (drawn := with_boxes(self.shown[1], answer)) is None:
            return
        stem, number = Path(self.shown[0]).stem, 1
        while (path := self.out / f"{stem}.boxes-{number}.png").exists():
            number += 1
        drawn.save(path)
        print(printable(f"(boxes drawn on {self.shown[0]}: {path})"))
        self._drawings.show(drawn)

    def _as_json(self) -> str:
        content = {"model": self.model, "system": self.session.model.system_message}
        return json.dumps({**content, "turns": [asdict(turn) for turn in self.turns]}, ensure_ascii=False, indent=1)

    def _as_markdown(self) -> str:
        parts = [f"# {self.model}"]
        for turn in self.turns:
            images = "".join(f"![]({_link(path)})\n\n" for path in turn.images)
            parts.append(f"## Question\n\n{images}{turn.question}\n\n## Answer\n\n{turn.answer}")
        return "\n\n".join(parts) + "\n"


def dropped_files(line: str) -> list[Path]:
    """The files that a terminal writes when they are dropped onto it; empty where the line is something else.

    Terminals write absolute paths: plain, in quotes, with backslashes before spaces, or as ``file://``.
    """
    plain = Path(line)
    if plain.is_absolute() and _is_file(plain):
        return [plain]
    paths = [_local(word) for word in _words(line)]
    return paths if all(path.is_absolute() and _is_file(path) for path in paths) else []


def named_files(text: str) -> list[Path]:
    """The files of an ``/image`` command: one path, spaces and all, or several words as a shell would read them."""
    plain = Path(text).expanduser()
    if _is_file(plain):
        return [plain]
    paths = [_local(word).expanduser() for word in _words(text)]
    return paths if paths and all(map(_is_file, paths)) else [_local(text.strip("\"'")).expanduser()]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an apostrophe
        return []


def _local(word: str) -> Path:
    return Path(unquote(urlsplit(word).path) if word.startswith("file://") else word)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long question is no name of a file
        return False


def _link(path: str) -> str:
    return f"<{path}>" if " " in path else path


def _printer() -> Callable[[str], None]:
    """Prints pieces as they come, without control codes and without the space before the first word."""
    begun = False

    def show(piece: str) -> None:
        nonlocal begun
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        print(printable(piece), end="", flush=True)

    return show


def _edit_lines() -> None:
    """Arrow keys edit the line and recall earlier ones, where Python has readline."""
    try:
        import readline  # noqa: F401  `input` uses it once it is imported
    except ImportError:  # Windows edits lines itself
        pass
