"""transformers' own server on the hf form, as docs/using.md starts it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER
from tests.openai_messages import image_part
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.processes import free_port

COMMAND = Path(sys.executable).with_name("transformers")


@pytest.fixture(scope="module")
def served(toy_base, tmp_path_factory):
    """(client, directory in the hf form) of a running server."""
    folder = tmp_path_factory.mktemp("serve")
    directory, port = folder / "mine-hf", free_port()
    convert(toy_base, directory, format="hf")
    command = [COMMAND, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), directory
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(HANGS_AFTER)


def wait_for(url, server, log):
    end = time.monotonic() + HANGS_AFTER
    while time.monotonic() < end:
        if server.poll() is not None:
            log.seek(0)
            raise AssertionError(f"the server ended: {log.read()[-2000:]}")
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def ask(served, question, image):
    """It streams every answer, whether asked for or not."""
    client, directory = served
    parts = [image_part(image)] if image else []
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    chunks = client.chat.completions.create(
        model=str(directory), messages=messages, max_tokens=8, temperature=0, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.release
def test_it_answers_as_we_do(served, toy_base):
    session = ChatSession.from_pretrained(toy_base, device="cpu")
    asked = [
        ("Which number is it?", Image.new("RGB", (112, 112), "red")),
        ("Which number is it?", Image.new("RGB", (225, 113), "white")),  # two tiles and a thumbnail
        ("What?", Image.new("RGB", (112, 112), "white")),
        ("Hello", None),
    ]
    items = [(question, [image] if image else []) for question, image in asked]
    expected = session.answers(items, max_new_tokens=8)
    assert len(set(expected)) == len(asked), "the answers tell nothing"
    assert [ask(served, *each).strip() for each in asked] == expected
