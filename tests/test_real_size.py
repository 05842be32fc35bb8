"""True sizes on a CPU: InternViT-300M and a Qwen2.5-0.5B-shaped LLM, random weights, photographs of 13 tiles.

The root leaves train as shipped, each in a process of its own, except for what a machine of 2 cores can't wait for: one
sample per micro-batch, one micro-batch per step, and the GPUs' bfloat16 (a CPU's default is float32, whose matrix
products take 2.5 times as long here).
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER, ROOT
from tests.engine.forked import STEP_LINE, logged
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.toy.tokenizer import build_tokenizer

LIMIT_GIB = 16
INTERNVIT_300M = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
QWEN2_5_0_5B = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14)
VOCABULARY = 151643  # Qwen2.5's, before its special tokens
PHOTOS = ("rocket.jpg", "retina.jpg")  # 640 x 427 and 1411 x 1411, cut to 4:3
NUM_TILES = 13  # 4 x 3 and the thumbnail
SETTINGS = "max_steps=2 batch_size=1 accumulative_counts=1 dtype=bfloat16".split()
LEAVES = ("finetune_lora", "finetune_qlora", "finetune_full", "pretrain_mlp")


def write_parts(root):
    generator = random.Random(0)  # of distinct letter pairs enough to reach Qwen2.5's vocabulary size in seconds
    words = ((" " + "".join(chr(generator.randrange(97, 123)) for _ in range(5))) * 2 for _ in range(130_000))
    llm = {**QWEN2_5_0_5B, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}
    parts = write_random_parts(root, vision_overrides={**INTERNVIT_300M, "image_size": 448}, llm_overrides=llm)
    build_tokenizer(parts[1], vocab_size=VOCABULARY, texts=words)
    return parts


def write_records(root):
    import skimage

    lines = []
    for name in PHOTOS:
        photo = Image.open(Path(skimage.__file__).parent / "data" / name)
        width = min(photo.width, photo.height * 4 // 3)
        photo.crop((0, 0, width, width * 3 // 4)).save(root / name)
        turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"This is {name}."}]
        lines.append(json.dumps({"image": name, "conversations": turns}) + "\n")
    (root / "train.jsonl").write_text("".join(lines))
    return root / "train.jsonl", root


def run(*command, cwd=ROOT):
    """Runs a command to its end; returns its peak memory in GiB and its output.

    The peak is the larger of two: the kernel's own for the largest process, which misses nothing, and that of all
    processes together, where what several share counts once, which is sampled.
    """
    log, env = tempfile.TemporaryFile("w+"), {**os.environ, "OMP_NUM_THREADS": "2"}
    words, deadline = [sys.executable, *map(str, command)], time.monotonic() + HANGS_AFTER
    peak = ended = 0
    process = psutil.Popen(words, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT, text=True)
    while not ended:
        if time.monotonic() > deadline:
            process.kill()
        with contextlib.suppress(psutil.Error):
            tree = [process, *process.children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in tree))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        time.sleep(2)  # a sample reads every page table entry
    log.seek(0)
    output = log.read()
    assert os.waitstatus_to_exitcode(status) == 0, output[-4000:]
    return max(peak / 2**30, usage.ru_maxrss / 2**20), output


RELOAD = """
import sys
sys.modules["xtuner_plugins"] = None  # the export must stand alone
import torch
from transformers import AutoModel, AutoTokenizer
path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModel.from_pretrained(path, trust_remote_code=True, torch_dtype=torch.bfloat16).eval()
assert model.language_model.config.vocab_size == len(tokenizer)
pixels = torch.zeros(2, 3, 448, 448, dtype=torch.bfloat16)
print("ANSWER", repr(model.chat(tokenizer, pixels, "What is this?", dict(max_new_tokens=4, do_sample=False))))
print("PARAMETERS", sum(p.numel() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An official base directory of true sizes."""
    root = tmp_path_factory.mktemp("real")
    vision, llm = write_parts(root / "parts")
    peak, _ = run("tools/build_base_model.py", "--vision", vision, "--llm", llm, "--out", root / "base")
    assert peak < LIMIT_GIB
    shutil.rmtree(root / "parts")
    return root / "base"


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
@pytest.mark.parametrize("leaf", LEAVES)
def test_two_steps_of_13_tiles_within_memory(leaf, base, tmp_path):
    data, images = write_records(tmp_path)
    work_dir, export = tmp_path / "run", tmp_path / "export"
    settings = [f"base={base}", f"data_paths={data}", f"image_folders={images}", *SETTINGS]
    log_every_step = ["--cfg-options", "default_hooks.logger.interval=1"]
    peak, log = run("tools/train.py", leaf, "--work-dir", work_dir, "--set", *settings, *log_every_step)
    steps = [line for line in log.splitlines() if STEP_LINE.search(line)]
    assert len(steps) == 2 and not any("nan" in line.lower() for line in steps)
    assert logged(work_dir, "tiles") == [NUM_TILES] * 2
    peaks = [peak]
    if leaf == "finetune_lora":  # the run's checkpoint becomes a directory that stands alone
        peaks += [run("tools/convert_to_official.py", next(work_dir.glob("*.py")), work_dir, export)[0]]
        of_reload, answer = run("-c", RELOAD, export, cwd=tmp_path)
        peaks += [of_reload]
        assert "ANSWER" in answer and 900e6 < int(answer.split("PARAMETERS")[1]) < 1000e6
    print(f"{leaf}: peak memory in GiB:", [round(peak, 2) for peak in peaks])
    assert max(peaks) < LIMIT_GIB
