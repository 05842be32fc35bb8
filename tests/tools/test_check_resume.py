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

RECORDS = 1280  # ten parts
PARTS = 3  # after which the first check is killed


def command(data, out, *more):
    options = ["--image-folder", data / "images", "--json", out / "n.json", "--html", out / "p.html", "--workers", 2]
    words = [sys.executable, ROOT / "tools/check_data.py", data / "a.jsonl", *options, *more]
    return [str(word) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_gone_on_with(tmp_path, kill):
    (tmp_path / "images").mkdir()
    for number in range(RECORDS):
        Image.effect_noise((40 + number % 9, 300), 90).save(tmp_path / f"images/{number}.png")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    names = [f"{'missing' if number % 97 == 5 else number % 1000}.png" for number in range(RECORDS)]
    lines = [json.dumps({"image": name, "conversations": turns}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")

    def run(name, *more):
        out = tmp_path / name
        out.mkdir()
        env = {**os.environ, "XTUNER_PLUGINS_CACHE": str(tmp_path / f"cache-{name}"), "OMP_NUM_THREADS": "1"}
        return out, subprocess.Popen(
            command(tmp_path, out, *more), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    whole, process = run("whole")
    expected, _ = process.communicate(timeout=HANGS_AFTER)
    assert process.returncode == 1 and "14 image_missing" in expected

    cut, process = run("cut")

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache-cut").glob("*/opened-*/*.npz")}

    while process.poll() is None and len(kept()) < PARTS:
        time.sleep(0.005)
    process.send_signal(kill)
    process.communicate(timeout=HANGS_AFTER)
    assert process.returncode == (130 if kill == signal.SIGINT else -kill) and not (cut / "n.json").read_text()
    parts = kept()
    assert PARTS <= len(parts) < 10

    (cut / "n.json").unlink()
    (cut / "p.html").unlink()
    cut.rmdir()
    again, process = run("cut")
    found, _ = process.communicate(timeout=HANGS_AFTER)
    assert len(kept()) == 10 and parts.items() <= kept().items()  # these weren't opened again
    assert found.replace(str(again), str(whole)) == expected
    assert (again / "n.json").read_bytes() == (whole / "n.json").read_bytes()
    assert (again / "p.html").read_bytes() == (whole / "p.html").read_bytes()
