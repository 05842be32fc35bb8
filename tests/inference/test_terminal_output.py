"""What reaches a terminal: no control codes of others, and images only where it announces that it shows them."""

import os
import subprocess
import sys

import pexpect
import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.inference.terminal_output import printable

SHOWS = (
    "from PIL import Image; from xtuner_plugins.inference.terminal_output import Drawings\n"
    "drawings = Drawings()\n"
    "print('drawn:', drawings.show(Image.new('RGB', (64, 32), 'red')), drawings.show(Image.new('RGB', (8, 8))))\n"
    "print('typed:', input())\n"
)
SIXEL, HALF_BLOCK, KITTY = "\x1bP", "\u2580", "\x1b_G"


def test_control_codes_are_shown_not_obeyed():
    assert (
        printable("\x1b[2J\x1b]52;c;AAAA\x07 \x9b31m\x7f\r") == "\u241b[2J\u241b]52;c;AAAA\u2407 \ufffd31m\u2421\u240d"
    )
    assert "".join(map(printable, ["a\x1b", "[31", "mb"])) == "a\u241b[31mb"
    assert printable("two\nlines,\ttab, 中文 é 🙂") == "two\nlines,\ttab, 中文 é 🙂"


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in ("COLORTERM", "TERM", "PYTHONPATH")}
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **more}


def terminal(sixel=False, kitty=False, **env):
    """What a terminal with these abilities gets, and what `Drawings` said; it replies as such a terminal does."""
    child = pexpect.spawn(sys.executable, ["-c", SHOWS], env=environment(**env), encoding="utf-8", timeout=HANGS_AFTER)
    seen, child.delaybeforesend = "", None
    with child:
        while True:
            found = child.expect(["\x1b\\[c", "\x1b_Gi=(\\d+),s=1,v=1,a=q", "drawn: (\\w+ \\w+)"])
            seen += child.before
            if found == 0:
                child.send("\x1b[?62;4;22c" if sixel else "\x1b[?62;22c")
            elif found == 1 and kitty:
                child.send(f"\x1b_Gi={child.match[1]};OK\x1b\\")
            elif found == 2:
                said = child.match[1]
                child.sendline("hello")
                child.expect("typed: (.*)\r\n")
                assert child.match[1] == "hello"  # no reply of the terminal was taken for typed text
                return seen, said


@pytest.mark.parametrize(
    "abilities, drawn",
    [
        ({"sixel": True}, SIXEL),
        ({"kitty": True}, KITTY),
        ({"COLORTERM": "truecolor"}, HALF_BLOCK),
        ({}, None),
        ({"COLORTERM": "truecolor", "TERM": "dumb"}, None),
    ],
    ids=["sixel", "kitty", "colours", "nothing", "dumb"],
)
def test_the_terminal_decides(abilities, drawn):
    seen, said = terminal(**abilities)
    assert said == ("True True" if drawn else "False False")
    assert [mark in seen for mark in (SIXEL, HALF_BLOCK)] == [drawn == mark for mark in (SIXEL, HALF_BLOCK)]
    assert (seen.count(KITTY) > 1) == (drawn == KITTY)  # more than the rest of a question


def test_nothing_is_drawn_into_or_out_of_a_pipe():
    env = environment(COLORTERM="truecolor")
    piped = subprocess.run([sys.executable, "-c", SHOWS], input="x\n", capture_output=True, text=True, env=env)
    assert piped.stdout == "drawn: False False\ntyped: x\n", piped.stderr
    parent, child = os.openpty()
    with os.fdopen(parent, "rb", buffering=0) as screen:
        done = subprocess.run([sys.executable, "-c", SHOWS], input=b"x\n", stdout=child, env=env)
        os.close(child)
        assert done.returncode == 0 and screen.read(4096) == b"drawn: False False\r\ntyped: x\r\n"
