"""The README's way to a fine-tuned model, its own lines run on the toy base."""

import re
import shutil

import pytest

from tests.conftest import ROOT, XTP
from tests.small_data import write_dataset
from xtuner_plugins.settings import labels_of

HEADING = "## Fine-tune a released model on one GPU\n"
SMALLER = {"configs": "--set max_tiles=2 max_length=512 max_epochs=1", "train": "--set num_workers=0"}


@pytest.mark.slow
def test_the_lines_lead_to_a_model_that_answers(toy_base, run_tool, tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    _, download, *lines = [line.partition(" #")[0].split() for line in block.splitlines()]
    _, images = write_dataset(tmp_path, num_samples=24)
    shutil.copy(images / "0.png", tmp_path / "photo.jpg")
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "held_out.jsonl")
    place = tmp_path / download[-1]  # the toy base in the place of the download
    place.parent.mkdir()
    place.symlink_to(toy_base)
    told = []
    for words in lines:
        own = SMALLER.get(words[1], "").split()
        options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}, "input": "What do you see?\n"}
        done = run_tool("-c", XTP, *words[1:], *own, **options)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        told.append(done.stdout)
    assert "What this run trains:" in told[3] and "step 2/2  " in told[4] and "held_out" in told[-2] and told[-1]
    card = (tmp_path / "exports" / "mine" / "README.md").read_text(encoding="utf-8")
    assert "The export was verified." in card and "| text | mentions: accuracy |" in card and "Not measured" not in card
    assert labels_of(tmp_path / "my_run.py")["trains"].startswith("LoRA of rank 16 on the LLM: ")
