"""The models behind the page answer as a session does, stop when told, and speak to servers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.serving.demo_media import Medium
from xtuner_plugins.serving.demo_models import (
    LocalModel,
    ModelError,
    ServerModel,
    Settings,
    Turn,
    messages_of,
    stream_answers,
)

IMAGE = Image.effect_noise((336, 224), 90).convert("RGB")
MEDIA = (Medium("a.png", (IMAGE,), False),)
SHORT = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def session(toy_base):
    return ChatSession.from_pretrained(toy_base, device="cpu")


def final(models, conversation, settings=SHORT):
    return list(stream_answers(models, [conversation] * len(models), settings, threading.Event()))[-1]


def test_a_conversation_is_answered_as_by_a_session(session):
    session.reset()
    first = session.ask("What?", [IMAGE], max_new_tokens=6)
    second = session.ask("Why?", max_new_tokens=6)
    model = LocalModel(session, "toy")
    assert final([model], [Turn("What?", MEDIA)]) == [first]
    assert final([model, model], [Turn("What?", MEDIA, first), Turn("Why?")]) == [second, second]


def test_the_system_prompt_lasts_for_one_question(session):
    model, own = LocalModel(session, "toy"), session.model.system_message
    seen = []
    session.model.chat, chat = lambda *args, **options: seen.append(session.model.system_message), session.model.chat
    try:
        final([model], [Turn("Hi")], Settings(system="Be brief."))
        final([model], [Turn("Hi")])
    finally:
        session.model.chat = chat
    assert seen == ["Be brief.", own] and session.model.system_message == own


def test_stop_ends_an_answer(session):
    stop, pieces = threading.Event(), []

    def emit(piece):
        pieces.append(piece)
        stop.set()

    LocalModel(session, "toy").answer([Turn("Hi")], Settings(max_new_tokens=4096), stop, emit)
    assert 1 <= len(pieces) <= 2


def test_errors_reach_the_visitor(session):
    with pytest.raises(ModelError, match="1 <image> for 0 images"):
        final([LocalModel(session, "toy")], [Turn("<image>")])
    with pytest.raises(ModelError, match="can't be reached"):
        final([ServerModel("http://127.0.0.1:9/v1", "m")], [Turn("Hi")])


def test_several_images_come_without_line_breaks():
    """A server joins the parts of a message by line breaks itself."""
    (message,) = messages_of([Turn("Which?", MEDIA * 2)], "")
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert message["content"][-1]["text"] == "Which?"


class Answering(BaseHTTPRequestHandler):
    asked: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        known = body["model"] == "m"
        self.send_response(200 if known else 404)
        self.end_headers()
        if not known:
            self.wfile.write(b'{"error": "no such model"}')
            return
        for piece in ("two ", "words"):
            event = json.dumps({"choices": [{"delta": {"content": piece}}]})
            self.wfile.write(f"data: {event}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


def test_a_server_is_asked():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    try:
        assert final([ServerModel(url, "m")], [Turn("What?", MEDIA, "It."), Turn("Why?")]) == ["two words"]
        with pytest.raises(ModelError, match="404: .*no such model"):
            final([ServerModel(url, "other")], [Turn("Hi")])
    finally:
        server.shutdown()
        server.server_close()
    image, text = Answering.asked[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text == {"type": "text", "text": "What?"}
    assert [entry["role"] for entry in Answering.asked[0]["messages"]] == ["user", "assistant", "user"]
