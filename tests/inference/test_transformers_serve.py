"""transformers' own server on the hf form, as docs/using.md starts it."""

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER
from tests.openai_messages import image_part
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.processes import free_port


@pytest.fixture(scope="module")
def ask(toy_base, tmp_path_factory):
    """Asks a running server, which streams every answer, whether asked for or not."""
    directory, port = tmp_path_factory.mktemp("serve") / "mine-hf", free_port()
    convert(toy_base, directory, format="hf")
    command = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32"], env=env)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=40)  # it starts

    def answer(question, images):
        content = [*map(image_part, images), {"type": "text", "text": question}]
        options = {"max_tokens": 8, "temperature": 0, "stream": True}
        messages = [{"role": "user", "content": content}]
        chunks = client.chat.completions.create(model=str(directory), messages=messages, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip()

    try:
        yield answer
    finally:
        server.terminate()
        server.wait(HANGS_AFTER)


@pytest.mark.release
def test_it_answers_as_we_do(ask, toy_base):
    session = open_session(toy_base, device="cpu")
    items = [
        ("Which number is it?", [Image.new("RGB", (112, 112), "red")]),
        ("Which number is it?", [Image.new("RGB", (225, 113), "white")]),  # two tiles and a thumbnail
        ("What?", [Image.new("RGB", (112, 112), "white")]),
        ("Hello", []),
    ]
    expected = session.answers(items, max_new_tokens=8)
    assert len(set(expected)) == len(items), "the answers tell nothing"
    assert [ask(*item) for item in items] == expected
