"""Engines as they are asked; what they compute is compared in tests/tools/test_compare_engines_tool.py."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from xtuner_plugins.checkpoints.export import convert
from xtuner_plugins.inference.engines import EngineError, ServerEngine, TransformersEngine
from xtuner_plugins.inference.session import ChatSession

IMAGE = Image.effect_noise((225, 113), 90).convert("RGB")


@contextmanager
def server(answer):
    """The address of a server that has the model `m`; `answer` makes (status, reply) of a request's body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"data": [{"id": "m"}]})

        def do_POST(self):
            self.send(*answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def send(self, status, reply):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def completion(top=None):
    choice = {"message": {"content": " A bus. "}}
    if top is not None:
        choice["logprobs"] = {"content": [{"token": "A", "top_logprobs": top}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 76}}


@pytest.mark.parametrize(
    "top, first",
    [
        ([{"token": "A", "logprob": -0.1, "id": 32}, {"token": "B", "logprob": -2, "id": 33}], {32: -0.1, 33: -2.0}),
        ([{"token": "A", "logprob": -0.1}], {"A": -0.1}),
        ([], None),
    ],
)
def test_a_server_that_tells_probabilities(top, first):
    asked = []

    def answer(body):
        asked.append(body)
        return 200, completion(top)

    with server(answer) as url:
        found = ServerEngine(url, "m").read("What?", [IMAGE], 4, 20)
    assert (found.answer, found.num_tokens, found.first, found.ids) == ("A bus.", 76, first, None)
    (body,) = asked
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text["text"] == "What?"
    assert (body["temperature"], body["max_tokens"], body["top_logprobs"]) == (0, 4, 20)


def test_a_server_that_refuses_probabilities_is_asked_without():
    asked = []

    def answer(body):
        asked.append("logprobs" in body)
        return (400, {"error": "logprobs: not supported"}) if "logprobs" in body else (200, completion())

    with server(answer) as url:
        engine = ServerEngine(url, "m")
        assert [engine.read("What?", [], 4, 20).first for _ in range(2)] == [None, None]
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    "reply, message",
    [
        ((400, {"error": "too long"}), "the server answers 400: .*too long"),
        ((200, b"hello"), "sends no JSON object"),
        ((200, {"choices": []}), "sends no chat completion"),
        ((200, {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{}]}}]}), "no chat completion"),
    ],
)
def test_what_a_server_may_send(reply, message):
    with server(lambda body: reply) as url:
        engine = ServerEngine(url, "m")
        with pytest.raises(EngineError, match=message):
            engine.read("What?", [], 4, 20)


def test_a_server_that_is_not_there_or_has_another_model():
    with pytest.raises(EngineError, match="can't be reached"):
        ServerEngine("http://127.0.0.1:9/v1", "m")
    with server(lambda body: (200, {})) as url, pytest.raises(EngineError, match="no model 'n'; it has m"):
        ServerEngine(url, "n")


def test_transformers(toy_base, tmp_path):
    session = ChatSession.from_pretrained(toy_base, device="cpu")
    convert(toy_base, tmp_path / "hf", format="hf")
    rows = session.model.config.llm_config.vocab_size
    engine = TransformersEngine(tmp_path / "hf", torch.device("cpu"), torch.float32, rows)
    found = engine.read("What?", [IMAGE], 4, 20)
    assert found.ids == session.prompt_ids("What?", [IMAGE]) and found.pixels.shape == (3, 3, 112, 112)
    expected = session.first_log_probabilities("What?", [IMAGE])
    gap = max(abs(value - expected[token].item()) for token, value in found.first.items())
    assert len(found.first) == 20 and gap < 0.002  # torchvision rounds some pixels of the resized image otherwise
    assert found.answer == session.ask("What?", IMAGE, max_new_tokens=4).strip()
    session.reset()
    text_only = engine.read("What?", [], 4, 20)
    assert text_only.pixels is None and text_only.ids == session.prompt_ids("What?")


def test_transformers_without_such_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="transformers can't open"):
        TransformersEngine(tmp_path, torch.device("cpu"), torch.float32, 10)
