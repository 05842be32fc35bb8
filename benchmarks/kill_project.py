"""What `kill_runs.py` kills: its cases, and a folder with a tiny base and data in which commands are started."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.process_table import MARK, marked  # noqa: E402
from xtuner_plugins.processes import start_bound  # noqa: E402

NUM_RECORDS, NUM_IMAGES, EPOCHS = 8000, 16, 3
CONFIG = """
from mmengine.config import read_base

with read_base():
    from .toy.toy_finetune_{leaf} import *

model.base = "base"
{dropout}
train_dataloader.batch_size = {batch_size}
train_dataloader.num_workers = 1
train_dataloader.sampler.group_by = "length"
train_dataloader.dataset.update(data_paths=["data.jsonl"], image_folders=["images"], repeat_times=[0.005])
optim_wrapper.accumulative_counts = 2
default_hooks.logger.interval = 1
default_hooks.checkpoint.interval = 1
train_cfg.max_epochs = {epochs}
"""


@dataclass(frozen=True)
class Case:
    """What trains, and how: a leaf ``toy_finetune_*`` on a global batch of 4 in two micro-batches.

    Attributes:
        leaf: ``full``, ``lora`` or ``qlora``; those with adapters have dropout.
        processes: Ranks.
        deepspeed: As ``--deepspeed`` takes it; None for plain PyTorch.
    """

    leaf: str
    processes: int = 1
    deepspeed: str | None = None

    @property
    def name(self) -> str:
        """Such as ``zero2-lora``."""
        strategy = (self.deepspeed or "").removeprefix("deepspeed_") or ("ddp" if self.processes > 1 else "plain")
        return f"{strategy}-{self.leaf}"

    @property
    def config(self) -> str:
        """Its file in the project."""
        return f"configs/{self.name.replace('-', '_')}.py"

    @property
    def text(self) -> str:
        """What is in the file."""
        dropout = "" if self.leaf == "full" else "model.llm_lora.lora_dropout = 0.1"
        return CONFIG.format(leaf=self.leaf, dropout=dropout, batch_size=2 // self.processes, epochs=EPOCHS)


CASES = {
    case.name: case
    for case in (
        Case("lora"),
        Case("full", 2, "deepspeed_zero2"),
        Case("qlora"),
        Case("lora", 2),
        Case("full", 2, "deepspeed_zero3"),
        Case("full"),
        Case("lora", 2, "deepspeed_zero1"),
        Case("qlora", 2, "deepspeed_zero2"),
        Case("full", 2),
        Case("lora", 2, "deepspeed_zero3"),
    )
}


class Project:
    """A user's folder with a tiny base, data and a config per case; every process in it carries a mark."""

    def __init__(self, folder: Path):
        self.folder, self.mark = folder, f"kill-runs-{os.getpid()}"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.env = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.logs = 0

    def make(self, seed: int) -> None:
        """Writes everything that a run needs."""
        from PIL import Image

        from xtuner_plugins.export.base.build import build_base
        from xtuner_plugins.toy.models import write_random_parts

        build_base(*write_random_parts(self.folder / "parts"), self.folder / "base", dtype="float32")
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        for case in CASES.values():
            (self.folder / case.config).write_text(case.text)
        (self.folder / "images").mkdir()
        draw = random.Random(seed)
        for index in range(NUM_IMAGES):
            size = (draw.choice([112, 224, 336]), draw.choice([112, 224]))
            Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3))).save(
                self.folder / f"images/{index}.png"
            )
        with (self.folder / "data.jsonl").open("w") as file:
            for index in range(NUM_RECORDS):
                answer = " ".join(draw.choice(["red", "blue", "square", "circle", "two"]) for _ in range(1 + index % 9))
                record = {"image": f"{index % NUM_IMAGES}.png"} if index % 4 else {}
                question = "<image>\nWhat is it?" if index % 4 else "What is it?"
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                file.write(json.dumps({**record, "conversations": turns}) + "\n")

    def alive(self) -> list[int]:
        """Processes that a command has left or still runs in."""
        return [pid for pid in marked(self.mark) if pid != os.getpid()]

    def end_all(self) -> None:
        """Kills them."""
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def start(self, tool: str, *arguments: str | Path, processes: int = 1) -> tuple[subprocess.Popen, Path]:
        """Starts a tool; returns its process and the file that gets its output."""
        self.logs += 1
        log, words = self.folder / f"log_{self.logs:03}.txt", [sys.executable, ROOT / tool, *arguments]
        env = {**self.env, "NPROC_PER_NODE": str(processes)}
        with log.open("w") as file:
            return start_bound(list(map(str, words)), cwd=self.folder, env=env, stdout=file, stderr=file), log

    def train(self, case: Case, name: str) -> tuple[subprocess.Popen, Path]:
        """Starts or goes on with a run."""
        arguments = [case.config, "--work-dir", self.run(case, name), "--seed", "7", "--resume", "auto"]
        arguments += ["--deepspeed", case.deepspeed] if case.deepspeed else []
        return self.start("tools/train.py", *arguments, processes=case.processes)

    def export(self, case: Case, name: str, checkpoint: Path) -> tuple[subprocess.Popen, Path]:
        """Starts an export that may replace an earlier one."""
        target = Path("exports", case.name, name)
        return self.start("tools/convert_to_official.py", case.config, checkpoint, target, "--force")

    def run(self, case: Case, name: str) -> Path:
        """A run's work directory, relative to the project."""
        return Path("runs", case.name, name)

    def newest(self, case: Case, name: str) -> Path:
        """The checkpoint that a run's pointer names."""
        return Path((self.folder / self.run(case, name) / "last_checkpoint").read_text().strip())
