"""A conversation in the terminal, with a session that answers what the test says."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.inference.terminal_chat import COMMANDS, TerminalChat, dropped_files, named_files


class Session:
    """What `TerminalChat` uses of a `ChatSession`."""

    def __init__(self):
        self.model = SimpleNamespace(system_message="You are a test.")
        self.tiling = SimpleNamespace(max_tiles=6)
        self.asked, self.answers, self.resets = [], [], 0

    def ask(self, question, images, *, stream, **options):
        self.asked.append((question, [image.size for image in images], options))
        answer = self.answers.pop(0) if self.answers else "Yes."
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        stream(f" {answer}")
        return answer

    def reset(self):
        self.resets += 1

    def limit_tiles(self, max_tiles):
        self.tiling.max_tiles = max_tiles


@pytest.fixture()
def image(tmp_path):
    (tmp_path / "my photos").mkdir()
    path = tmp_path / "my photos" / "it's a.png"
    Image.new("RGB", (40, 20)).save(path)
    return path


@pytest.fixture()
def chat(tmp_path):
    return TerminalChat(Session(), "exports/mine", {"max_new_tokens": 8}, out=tmp_path)


def drops(path):
    """What terminals write for a dropped file."""
    text = str(path)
    escaped = "".join(f"\\{char}" if char in " '" else char for char in text)
    quoted = "'" + text.replace("'", "'\\''") + "'"
    return {"plain": text, "escaped": escaped, "quoted": quoted, "double": f'"{text}"', "url": path.as_uri()}


@pytest.mark.parametrize("how", ["plain", "escaped", "quoted", "double", "url"])
def test_a_dropped_image_goes_with_the_next_question(chat, image, how, capsys):
    line = drops(image)[how]
    assert dropped_files(line) == named_files(line) == [image]
    assert chat.handle(line) and chat.handle("What is it?") and chat.handle("And now?")
    assert [(question, sizes) for question, sizes, _ in chat.session.asked] == [
        ("What is it?", [(40, 20)]),
        ("And now?", []),
    ]
    assert capsys.readouterr().out == f"({image}, 40 x 20, goes with the next question)\nYes.\nYes.\n"


def test_several_at_once_and_by_command(chat, image, tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "b.png")
    assert chat.handle(f"{drops(image)['quoted']} {tmp_path / 'b.png'}")
    chat.handle(f"/image {image}")
    assert [image.size for _, image in chat.pending] == [(40, 20), (10, 10), (40, 20)]


def test_questions_are_no_files(chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Why?").write_text("")
    for line in ("Why?", "What's on it?", "x" * 5000, "\\"):
        assert dropped_files(line) == [] and chat.handle(line)
    assert len(chat.session.asked) == 4


def test_wrong_lines(chat, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for line, said in (
        ("/unknown", "no command /unknown; there are /image"),
        ("/missing/a b.png", "no such file"),
        ("/image", "/image needs the path"),
        ("/image none.png", "none.png: no such image"),
        (f"/image {tmp_path}", "a folder, not an image"),
        (f"{tmp_path}/text.png", "text.png: can't be decoded"),
        ("/tiles many", "/tiles many: give a whole number"),
        ("/tiles 0", "/tiles 0: give a whole number"),
        ("/save", "/save needs the path"),
        ("/save a.txt", "ends in .json or .md"),
    ):
        with pytest.raises(ValueError, match=said.replace("/", "[/]")):
            chat.handle(line)
    assert chat.session.asked == [] and chat.pending == []


def test_commands(chat, image, capsys):
    for line in ("/system", "/tiles", "/tiles 3", f"/image {image}", "/system Be brief.", "Hi", "/clear", "/help"):
        assert chat.handle(line)
    out = capsys.readouterr().out
    assert "You are a test." in out and "at most 6 tiles" in out and "at most 3 tiles" in out
    assert all(name in out for name in COMMANDS)
    assert chat.session.model.system_message == "Be brief." and chat.session.resets == 2 and chat.turns == []
    assert chat.session.asked == [("Hi", [], {"max_new_tokens": 8})]  # the image went with the conversation before
    assert not chat.handle("/quit")


def test_a_saved_conversation(chat, image, tmp_path):
    chat.handle(f"/image {image}")
    chat.handle("Grün?")
    chat.handle("And now?")
    chat.handle(f"/save {tmp_path}/a b.json")
    assert json.loads((tmp_path / "a b.json").read_text(encoding="utf-8")) == {
        "model": "exports/mine",
        "system": "You are a test.",
        "turns": [
            {"question": "Grün?", "images": [str(image)], "answer": "Yes."},
            {"question": "And now?", "images": [], "answer": "Yes."},
        ],
    }
    with pytest.raises(ValueError, match="the file exists"):
        chat.handle(f"/save {tmp_path}/a b.json")
    chat.handle(f"/save {tmp_path}/a.md")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert text.startswith("# exports/mine\n\n## Question\n\n![](<") and text.endswith("## Answer\n\nYes.\n")


def test_boxes_are_drawn_into_a_new_file(chat, image, tmp_path, capsys):
    chat.session.answers = ["<box>[[0, 0, 500, 500]]</box>"] * 3
    chat.handle("Where?")  # no image yet
    chat.handle(f"/image {image}")
    chat.handle("Where?")
    chat.handle("And now?")
    names = ["it's a.boxes-1.png", "it's a.boxes-2.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    assert Image.open(tmp_path / names[0]).getpixel((0, 0)) != (0, 0, 0)
    assert f"(boxes drawn on {image}: {tmp_path / names[1]})" in capsys.readouterr().out


def test_a_terminal_obeys_no_answer_and_no_name(chat, tmp_path, capsys):
    path = tmp_path / "a\x1b[2J.png"
    Image.new("RGB", (40, 20)).save(path)
    chat.session.answers = ["\x1b]0;title\x07Red."]
    chat.handle(f"/image {path}")
    chat.handle("Which?")
    out = capsys.readouterr().out
    assert "\u241b]0;title\u2407Red." in out and "a\u241b[2J.png" in out and "\x1b" not in out and "\x07" not in out
    assert chat.turns[0].answer == "\x1b]0;title\x07Red."  # what is saved is the answer itself


def test_ctrl_c_stops_one_answer(chat, monkeypatch, capsys):
    lines = iter(["Interrupted?", "Again?", KeyboardInterrupt, "/save /no/such/folder/a.md", "/none"])

    def typed(prompt):
        line = next(lines, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    chat.session.answers = [KeyboardInterrupt, "Yes."]
    assert chat.run() == 0
    out, err = capsys.readouterr()
    assert out.count("interrupted") == 2 and [turn.question for turn in chat.turns] == ["Again?"]
    assert len(err.splitlines()) == 2 and "/no/such/folder" in err and "no command /none" in err


def test_system_prompt_and_tiles_reach_the_model(toy_base, monkeypatch):
    chat = TerminalChat(ChatSession.from_pretrained(toy_base, device="cpu"), "toy", {"max_new_tokens": 1})
    generate, asked = chat.session.model.chat, []

    def spy(*args, **options):
        asked.append(options["num_patches_list"])
        return generate(*args, **options)

    monkeypatch.setattr(chat.session.model, "chat", spy)
    chat.handle("/tiles 2")
    chat.handle("/system Answer in one word.")
    chat.pending = [("a.png", Image.new("RGB", (448, 224)))]
    chat.handle("What?")
    assert asked == [[3]]  # 2 tiles and a thumbnail
    assert "Answer in one word." in chat.session.model.build_prompt("?")
