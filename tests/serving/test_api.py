"""The server as its clients meet it: HTTP, the official client, answers equal to the session's."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.serving.api import create_app
from xtuner_plugins.serving.api_engine import Engine
from xtuner_plugins.serving.api_messages import Limits

LIMITS = Limits(body_bytes=1 << 20, images=3, pixels=200_000, new_tokens=5000, queue=24)
KEY = "secret"
QUESTION = {"role": "user", "content": "Hello"}


def make_image(seed, size=(112, 112)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def part(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def text(content):
    return {"type": "text", "text": content}


@pytest.fixture(scope="module")
def served(toy_base):
    """(engine, port) of a running server."""
    engine = Engine(ChatSession.from_pretrained(toy_base, device="cpu"), LIMITS)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(engine, "toy", [KEY]), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield engine, listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive() and not engine._thread.is_alive()


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{served[1]}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def session(toy_base):
    return ChatSession.from_pretrained(toy_base, device="cpu")


def ask(client, *messages, **options):
    options = {"max_tokens": 8, **options}
    return client.chat.completions.create(model="toy", messages=list(messages), **options)


def said(response):
    return response.choices[0].message.content


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_models_and_health(client, served):
    assert [model.id for model in client.models.list()] == ["toy"]
    connection = http.client.HTTPConnection("127.0.0.1", served[1])
    connection.request("GET", "/health")  # without a key
    assert json.load(connection.getresponse()) == {"status": "ok", "waiting": 0}


def test_a_conversation_is_answered_as_in_the_session(client, session):
    first, pair = make_image(0, (336, 224)), [make_image(1), make_image(2, (224, 112))]
    session.reset()
    one = session.ask("What is it?", first, max_new_tokens=8)
    two = session.ask("And these?", pair, max_new_tokens=8)
    ids = session.prompt_ids("Why?")
    three = session.ask("Why?", max_new_tokens=8)

    turns = [{"role": "user", "content": [text("What is it?"), part(first)]}]
    found = ask(client, *turns)
    assert said(found) == one
    turns += [found.choices[0].message, {"role": "user", "content": [*map(part, pair), text("And these?")]}]
    found = ask(client, *turns)
    assert said(found) == two
    turns += [found.choices[0].message, {"role": "user", "content": "Why?"}]
    found = ask(client, *turns)
    assert said(found) == three
    usage = found.usage
    assert usage.prompt_tokens == len(ids) and 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert found.choices[0].finish_reason == ("length" if usage.completion_tokens == 8 else "stop")


def test_streaming_gives_the_same_text_and_the_usage(client):
    whole = ask(client, QUESTION, max_tokens=40)
    chunks = list(ask(client, QUESTION, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == said(whole) and len([piece for piece in pieces if piece]) > 1
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_system_message_stop_and_sampling(client, session):
    own = session.model.system_message
    plain = said(ask(client, QUESTION, max_tokens=40))
    try:
        session.reset()
        session.model.system_message = "Be brief."
        ids = session.prompt_ids("Hello")
    finally:
        session.model.system_message = own
    system = {"role": "system", "content": "Be brief."}
    assert ask(client, system, QUESTION).usage.prompt_tokens == len(ids)
    assert said(ask(client, QUESTION, max_tokens=40)) == plain  # the system message was for one request
    stop = plain[3:5]
    for stream in (False, True):
        found = ask(client, QUESTION, max_tokens=40, stop=[stop], stream=stream)
        if stream:
            found = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            assert found.choices[0].finish_reason == "stop" and found.usage.completion_tokens < 40
            found = said(found)
        assert found == plain[: plain.index(stop)].strip()
    warm = {"temperature": 1.5, "top_p": 0.9, "max_tokens": 12}
    sampled = [said(ask(client, QUESTION, seed=seed, **warm)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_twenty_at_once_are_all_answered_and_not_mixed_up(client, session):
    def question(index):
        return {"role": "user", "content": [part(make_image(index)), text(f"What is number {index}?")]}

    expected = []
    for index in range(20):
        session.reset()
        expected.append(session.ask(f"What is number {index}?", make_image(index), max_new_tokens=4 + index))
    assert len(set(expected)) > 10
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda i: said(ask(client, question(i), max_tokens=4 + i)), range(20)))
    assert found == expected


def test_a_client_that_hangs_up_stops_its_generation(client, served):
    engine = served[0]
    stream = ask(client, QUESTION, max_tokens=1900, stream=True)
    next(iter(stream))
    job = engine._current
    stream.close()
    wait_until(lambda: engine._current is None)
    assert job.cancelled.is_set()
    # Nor is a whole answer computed for nobody, or one that waits.
    body = json.dumps({"model": "toy", "messages": [QUESTION], "max_tokens": 1900})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connections = [http.client.HTTPConnection("127.0.0.1", served[1]) for _ in range(3)]
    for connection in connections:
        connection.request("POST", "/v1/chat/completions", body, headers)
    wait_until(lambda: len(engine.queue) == 3)
    for connection in connections:
        connection.close()
    wait_until(lambda: len(engine.queue) == 0 or engine._current is None)
    assert said(ask(client, QUESTION)) is not None


@pytest.mark.parametrize(
    "options, status, message",
    [
        ({"model": "other"}, 404, "model 'other' is not here; this is 'toy'"),
        ({"max_tokens": 6000}, 400, "max_tokens = 6000: this server writes at most 5000"),
        ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
        ({"n": 2}, 400, "n = 2 is not supported"),
        ({"extra_body": {"top_k": 3}}, 400, "top_k: this server has no such parameter"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [QUESTION, QUESTION]}, 400, "messages[1]: role 'user' where 'assistant' is expected"),
        ({"max_tokens": 4096}, 400, "but the model has 4096; send fewer images"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client, options, status, message):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "toy", "messages": [QUESTION], **options})
    assert caught.value.status_code == status and message in caught.value.body["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "url, message",
    [
        ("http://10.0.0.1/a.png", "is no data URL; this server opens no addresses"),
        ("file:///etc/passwd", "is no data URL; this server opens no addresses"),
        ("data:image/png;base64,aGVsbG8=", "messages[0], image 1: no image; send one of JPEG"),
        ("data:image/png;base64,!!", "image_url holds no base64"),
        (part(make_image(0, (500, 500)))["image_url"]["url"], "500x500 pixels; at most 200000"),
    ],
)
def test_images_that_cannot_be_taken(client, url, message, stream):
    content = [text("What?"), {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, {"role": "user", "content": content}, stream=stream)
    assert message in caught.value.body["message"]


def test_a_wrong_key_an_unknown_address_and_a_large_body(client, served):
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings: Not Found; there are /health"):
        client.embeddings.create(model="toy", input="a")
    with pytest.raises(openai.APIStatusError, match="larger than 1 MiB") as caught:
        ask(client, {"role": "user", "content": "a" * (1 << 21)})
    assert caught.value.status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"model": "toy", "messages": "\xff"}'])
def test_what_is_no_json_is_refused(served, body):
    connection = http.client.HTTPConnection("127.0.0.1", served[1])
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 400 and "Traceback" not in (said := response.read().decode()) and '"error"' in said


def test_a_defect_of_the_server_shows_no_inner_parts(client, served, monkeypatch):
    def explode(*args, **kwargs):
        raise RuntimeError("inner parts")

    monkeypatch.setattr(served[0].session, "ask", explode)
    for stream in (False, True):
        with pytest.raises(openai.APIError) as caught:
            list(ask(client, QUESTION, stream=stream))
        assert "its log says why" in str(caught.value) and "inner parts" not in str(caught.value)
