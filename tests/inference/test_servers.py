"""Servers of other projects on an export, as docs/using.md starts them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER
from tests.openai_messages import image_part
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.processes import free_port
from xtuner_plugins.toy.models import write_random_parts

ITEMS = [
    ("Which number is it?", [Image.new("RGB", (112, 112), "red")]),
    ("Which number is it?", [Image.new("RGB", (225, 113), "gray")]),  # two tiles and a thumbnail
    ("Hello", []),
]


VLLM = os.environ.get("XTUNER_PLUGINS_VLLM", shutil.which("vllm"))  # it has an environment of its own
COMMANDS = {
    "official": [VLLM, "serve", "{folder}/official", "--trust-remote-code"],
    "hf": [Path(sys.executable).with_name("transformers"), "serve", "--device", "cpu"],
}


WITH_VLLM = pytest.param("official", marks=pytest.mark.skipif(not VLLM, reason="XTUNER_PLUGINS_VLLM names no vLLM"))


@pytest.mark.release
@pytest.mark.parametrize("format", ["hf", WITH_VLLM])
def test_it_answers_as_we_do(format, tmp_path):
    """It streams every answer. vLLM's attention on a processor takes heads of 32 numbers."""
    parts = write_random_parts(tmp_path / "parts", llm_overrides={"hidden_size": 128, "torch_dtype": "float32"})
    build_base(*parts, tmp_path / "official", dtype="float32")
    convert(tmp_path / "official", tmp_path / "hf", format="hf")
    expected = open_session(tmp_path / "official", device="cpu").answers(ITEMS, max_new_tokens=8)
    assert len(set(expected)) == len(ITEMS), "the answers tell nothing"
    port, command = free_port(), [str(word).format(folder=tmp_path) for word in COMMANDS[format]]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""}
    server = subprocess.Popen(command, env=env)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=40)  # it starts
    options = {"model": str(tmp_path / format), "max_tokens": 8, "temperature": 0, "stream": True}
    try:
        for (question, images), answer in zip(ITEMS, expected, strict=True):
            content = [*map(image_part, images), {"type": "text", "text": question}]
            chunks = client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            if format == "official":  # vLLM keeps half a character back
                said, answer = (text.replace("\ufffd", "") for text in (said, answer))
            assert said.strip() == answer.strip(), question
    finally:
        server.terminate()
        server.wait(HANGS_AFTER)
