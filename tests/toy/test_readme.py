"""The README's way to a fine-tuned model, its own lines run on the toy base."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from tests.small_data import write_dataset
from xtuner_plugins.settings import labels_of

HEADING = "## Fine-tune a released model on one GPU\n"
XTP = "import sys; from xtuner_plugins.cli.xtp import main; sys.exit(main())"
SMALLER = {"configs": "--set max_tiles=2 max_length=512 max_epochs=1", "train": "--set num_workers=0"}


def readme_lines():
    """The shell lines of the section, comments cut."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def test_the_lines_are_those_of_a_whole_run():
    said = [" ".join(line.split()[:2]) for line in readme_lines()]
    before = ["source .venv/bin/activate", "hf download", "xtp evaluate", "xtp configs", "xtp check", "xtp train"]
    assert said == [*before, "xtp train", "xtp export", "xtp evaluate", "xtp evaluate", "xtp chat"]


@pytest.mark.slow
def test_the_lines_lead_to_a_model_that_answers(toy_base, tmp_path):
    _, images = write_dataset(tmp_path, num_samples=24)
    shutil.copy(images / "0.png", tmp_path / "photo.jpg")
    (tmp_path / "held_out.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    told = {}
    for line in readme_lines()[1:]:
        words = line.split()
        if words[0] == "hf":  # the toy base in the place of the download
            place = tmp_path / words[-1]
            place.parent.mkdir()
            place.symlink_to(toy_base)
            continue
        words += SMALLER.get(words[1], "").split()
        done = subprocess.run(
            [sys.executable, "-c", XTP, *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            input="What do you see?\n",
            capture_output=True,
            text=True,
            timeout=HANGS_AFTER,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        told[line] = done.stdout
    trial, run, compared, answer = (list(told.values())[index] for index in (3, 4, -2, -1))
    assert "What this run trains:" in trial and "step 2/2  " in run
    assert compared.count("held_out") >= 1 and answer.strip()
    card = (tmp_path / "exports" / "mine" / "README.md").read_text(encoding="utf-8")
    assert "The export was verified." in card and "| text | mentions: accuracy |" in card and "Not measured" not in card
    assert labels_of(tmp_path / "my_run.py")["trains"].startswith("LoRA of rank 16 on the LLM: ")
