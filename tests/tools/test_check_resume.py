"""A check that is killed goes on where it stopped, and ends as one that wasn't."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.files import CACHE_VARIABLE

RECORDS = 1920  # fifteen parts
PARTS = 3  # after which a check is killed


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(RECORDS):
        Image.effect_noise((40 + number % 9, 300), 90).save(tmp_path / f"images/{number}.png")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    names = [f"{'missing' if number % 97 == 5 else number % 1000}.png" for number in range(RECORDS)]
    lines = [json.dumps({"image": name, "conversations": turns}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    options = f"--image-folder {tmp_path}/images --json {tmp_path}/n.json --html {tmp_path}/p.html --workers 2".split()

    def start(cache):
        command = [sys.executable, str(ROOT / "tools/check_data.py"), str(tmp_path / "a.jsonl"), *options]
        env = {**os.environ, CACHE_VARIABLE: str(tmp_path / cache), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def found(process):
        said, _ = process.communicate(timeout=HANGS_AFTER)
        return process.returncode, said, *((tmp_path / name).read_bytes() for name in ("n.json", "p.html"))

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*/opened-*/*.npz")}

    whole = found(start("whole"))
    assert whole[0] == 1 and "20 image_missing" in whole[1]
    (tmp_path / "n.json").write_bytes(b"")
    parts = {}
    for kill in (signal.SIGINT, signal.SIGKILL):
        process, enough = start("cut"), len(parts) + PARTS
        while process.poll() is None and len(kept()) < enough:
            time.sleep(0.005)
        process.send_signal(kill)
        assert found(process)[::2] == (130 if kill == signal.SIGINT else -kill, b"")
        assert parts.items() <= kept().items()  # these weren't opened again
        parts = kept()
        assert enough <= len(parts) < 15
    assert found(start("cut")) == whole and len(kept()) == 15 and parts.items() <= kept().items()
