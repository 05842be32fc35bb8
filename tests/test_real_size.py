"""The main job at true sizes: InternViT-300M and a Qwen2.5-0.5B-shaped LLM with random weights, real photographs."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import HANGS_AFTER

ROOT = Path(__file__).resolve().parents[1]
LIMIT_GIB = 16
INTERNVIT_300M = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=448
)
QWEN2_5_0_5B = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    max_position_embeddings=32768,
)
VOCABULARY = 151643  # Qwen2.5's, before its special tokens
PHOTOS = ("rocket.jpg", "retina.jpg")  # 640 x 427 and 1411 x 1411


def random_words():
    """Enough distinct letter pairs that training reaches Qwen2.5's vocabulary size in seconds."""
    generator = random.Random(0)
    for _ in range(130_000):
        yield (" " + "".join(chr(generator.randrange(97, 123)) for _ in range(5))) * 2


def write_parts(root):
    from xtuner_plugins.toy.models import write_random_parts
    from xtuner_plugins.toy.tokenizer import build_tokenizer

    vision, llm = write_random_parts(root, vision_overrides=INTERNVIT_300M, llm_overrides=QWEN2_5_0_5B)
    build_tokenizer(llm, vocab_size=VOCABULARY, texts=random_words())
    return vision, llm


def write_records(root):
    import skimage

    images = root / "images"
    images.mkdir()
    lines = []
    for name in PHOTOS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, images / name)
        turns = [
            {"from": "human", "value": "<image>\nDescribe the photograph."},
            {"from": "gpt", "value": f"This is {name}."},
        ]
        lines.append(json.dumps({"image": name, "conversations": turns}))
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root / "train.jsonl", images


def tree_rss_gib(pid):
    """Resident memory of a process and its descendants, in GiB."""
    total, pids = 0, [pid]
    while pids:
        current = pids.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text()
            pids += [
                int(child)
                for t in Path(f"/proc/{current}/task").iterdir()
                for child in (t / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
    return total / 2**20


def run(*command, cwd=ROOT):
    """Runs a command to its end and returns the peak memory of its process tree in GiB."""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = [0.0]

    def watch():
        while process.poll() is None:
            peak[0] = max(peak[0], tree_rss_gib(process.pid))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate(timeout=HANGS_AFTER)
    watcher.join()
    assert process.returncode == 0, output[-4000:]
    return peak[0], output


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_two_steps_export_and_reload_within_memory(tmp_path):
    vision, llm = write_parts(tmp_path / "parts")
    data, images = write_records(tmp_path)
    base, export, work_dir = tmp_path / "base", tmp_path / "export", tmp_path / "run"
    peaks = {}
    peaks["assemble"], _ = run("tools/build_base_model.py", "--vision", vision, "--llm", llm, "--out", base)
    shutil.rmtree(tmp_path / "parts")
    options = {
        "pretrained_model_name_or_path": base,
        "model.base": base,
        "train_dataloader.dataset.base": base,
        "train_dataloader.dataset.data_paths": f"[{data}]",
        "train_dataloader.dataset.image_folders": f"[{images}]",
        "train_dataloader.dataset.max_tiles": 6,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "optim_wrapper.accumulative_counts": 1,
        "default_hooks.logger.interval": 1,
    }
    settings = [f"{key}={value}" for key, value in options.items()]
    config = "configs/finetune_lora.py"
    peaks["train"], log = run("tools/train.py", config, "--work-dir", work_dir, "--cfg-options", *settings)
    assert "Iter(train) [2/2]" in log and "nan" not in log.lower().split("iter(train)")[-1]
    checkpoint = next(work_dir.glob("*.pth"))
    # The config of the run, with its base and paths as trained.
    trained_config = next(work_dir.glob("*.py"))
    peaks["export"], _ = run("tools/convert_to_official.py", trained_config, checkpoint, export)
    peaks["reload"], answer = run("-c", RELOAD, export, cwd=tmp_path)
    assert "ANSWER" in answer
    num_parameters = int(answer.split("PARAMETERS")[1])
    assert 900e6 < num_parameters < 1000e6
    print("peak memory in GiB:", {stage: round(peak, 2) for stage, peak in peaks.items()})
    assert max(peaks.values()) < LIMIT_GIB
