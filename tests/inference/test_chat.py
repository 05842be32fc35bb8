"""A conversation in the terminal, with a session that answers what the test says."""

from unittest import mock

import pytest
from PIL import Image

from xtuner_plugins.inference.chat import COMMANDS, TerminalChat


class Session:
    """What `TerminalChat` uses of a `ChatSession`."""

    def __init__(self):
        self.asked, self.said = [], []

    def reply(self, turns, **options):
        self.asked.append((turns[-1].question, turns[-1].images, options))
        answer = self.said.pop(0) if self.said else "Yes."
        if not isinstance(answer, str):
            raise answer
        yield from (f" {answer[:2]}", answer[2:])


@pytest.fixture()
def chat():
    return TerminalChat(Session(), {"max_new_tokens": 8})


def test_questions_images_and_commands(chat, tmp_path, capsys):
    """No control code of an answer or a name reaches the terminal; what is kept is the answer itself."""
    Image.new("RGB", (40, 20)).save(image := tmp_path / "it's\x1b[2J a.png")
    chat.session.said = ["\x1b]0;title\x07Red.\x7f\x80"]
    for line in (f"/image {image}", "What is it?", "And now?"):
        assert chat.handle(line)
    shown = f"({image}, 40 x 20, goes with the next question)".replace("\x1b", "\u241b")
    assert capsys.readouterr().out == f"{shown}\n\u241b]0;title\u2407Red.\u2421\ufffd\nYes.\n"
    assert [turn.answer for turn in chat.turns] == ["\x1b]0;title\x07Red.\x7f\x80", "Yes."]
    for line in ("/tiles 3", f"/image {image}", "/system Be brief.", "Hi", "/clear", "/help"):
        assert chat.handle(line)
    out = capsys.readouterr().out
    assert "at most 3 tiles" in out and out.count("(a new conversation)") == 2  # by /system and /clear
    assert all(name in out for name in COMMANDS) and chat.turns == []
    assert chat.session.asked == [
        ("What is it?", (str(image),), {"max_new_tokens": 8}),
        ("And now?", (), {"max_new_tokens": 8}),
        # the image went with the conversation before
        ("Hi", (), {"max_new_tokens": 8, "system": "Be brief.", "max_tiles": 3}),
    ]
    assert not chat.handle("/quit")


def test_wrong_lines(chat, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for line, said in {
        "/unknown": "no command /unknown; there are /image",
        "/system": "type /system TEXT",
        "/image none.png": "none.png: no such image",
        f"/image {tmp_path}/text.png": "text.png.*: can't be decoded",
        **dict.fromkeys(("/tiles many", "/tiles 0"), "type /tiles N"),
    }.items():
        with pytest.raises(ValueError, match=said):
            chat.handle(line)
    assert chat.session.asked == [] and chat.pending == []


def test_ctrl_c_and_errors_stop_one_answer_at_a_terminal(chat, monkeypatch, capsys):
    def run(is_terminal, *typed, said=()):
        monkeypatch.setattr("builtins.input", mock.Mock(side_effect=typed))
        monkeypatch.setattr("sys.stdin", mock.Mock(**{"isatty.return_value": is_terminal}))
        chat.session.said = list(said)
        return chat.run()

    too_large = RuntimeError("CUDA out of memory")
    said = [KeyboardInterrupt(), too_large, "Yes."]
    assert run(True, "Interrupted?", "Large?", "", "Again?", KeyboardInterrupt, "/none", EOFError, said=said) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Ask, or type one of /image") and out.count("interrupted") == 2
    assert [turn.question for turn in chat.turns] == ["Again?"] and "out of memory; lower /tiles" in err
    assert len(err.splitlines()) == 2 and "no command /none" in err
    assert run(False, "/none", "Again?", "/quit") == 1  # a pipe
    for error in (too_large, KeyboardInterrupt()):
        with pytest.raises(type(error)):
            run(False, "Again?", said=[error])
