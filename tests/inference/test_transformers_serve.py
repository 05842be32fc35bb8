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

ITEMS = [
    ("Which number is it?", [Image.new("RGB", (112, 112), "red")]),
    ("Which number is it?", [Image.new("RGB", (225, 113), "white")]),  # two tiles and a thumbnail
    ("Hello", []),
]


@pytest.mark.release
def test_it_answers_as_we_do(toy_base, tmp_path):
    """It streams every answer, whether asked for or not."""
    expected = open_session(toy_base, device="cpu").answers(ITEMS, max_new_tokens=8)
    assert len(set(expected)) == len(ITEMS), "the answers tell nothing"
    convert(toy_base, tmp_path / "mine-hf", format="hf")
    program, port = Path(sys.executable).with_name("transformers"), free_port()
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=40)  # it starts
    options = {"model": str(tmp_path / "mine-hf"), "max_tokens": 8, "temperature": 0, "stream": True}
    try:
        for (question, images), answer in zip(ITEMS, expected, strict=True):
            content = [*map(image_part, images), {"type": "text", "text": question}]
            chunks = client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert said.strip() == answer, question
    finally:
        server.terminate()
        server.wait(HANGS_AFTER)
