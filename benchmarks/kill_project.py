"""What `kill_runs.py` kills: its cases, and a folder with a tiny base and data in which commands are started."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.process_table import MARK, marked, wait_until  # noqa: E402
from xtuner_plugins.engine.launch.ranks import LEFT_AFTER_FAILURE_SECONDS  # noqa: E402
from xtuner_plugins.processes import die_with_parent, free_port, start_bound  # noqa: E402

# What runs in a copy in place of a tool; the training itself, not its launcher.
PRELOADED = {
    "tools/train.py": "xtuner_plugins.engine.launch.train_process",
    "tools/convert_to_official.py": "tools.convert_to_official",
}
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


class Copy:
    """A command in a copy of this process; as far as needed here, it looks like `subprocess.Popen`."""

    def __init__(self, folder: Path, log: Path, module: str, arguments: list[str], env: dict[str, str] | None = None):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                die_with_parent()
                os.chdir(folder)
                os.environ.update(env or {})
                file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, 1)
                os.dup2(file, 2)
                sys.argv = [module, *arguments]
                status = importlib.import_module(module).main() or 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Waits for the end.

        Raises:
            subprocess.TimeoutExpired: It didn't come in time.
        """
        if not wait_until(lambda: self.poll() is not None, seconds):
            raise subprocess.TimeoutExpired("copy", seconds)
        return self.returncode


class Ranks:
    """Copies that train together; as one command it ends when all have ended, with the first failure's status."""

    def __init__(self, processes: int, folder: Path, log: Path, module: str, arguments: list[str]):
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        meeting |= {"LOCAL_WORLD_SIZE": str(processes)}
        self.copies = [
            Copy(folder, log, module, arguments, {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        self.pid = self.copies[0].pid
        self._deadline: float | None = None

    @property
    def returncode(self) -> int | None:
        """The status; None while one runs."""
        codes = [copy.returncode for copy in self.copies]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        """The status; None while one runs. Ends what goes on after a failure, as the launcher does."""
        if any([copy.poll() for copy in self.copies]) and self._deadline is None:
            self._deadline = time.monotonic() + LEFT_AFTER_FAILURE_SECONDS
        if self._deadline is not None and time.monotonic() > self._deadline:
            for copy in self.copies:
                if copy.poll() is None:
                    os.kill(copy.pid, signal.SIGKILL)
        return self.returncode

    wait = Copy.wait


class Project:
    """A user's folder with a tiny base, data and a config per case; every process in it carries a mark."""

    def __init__(self, folder: Path, preload: bool):
        self.folder, self.preload = folder, preload
        self.mark = os.environ.get(MARK) or f"kill-runs-{os.getpid()}"
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

    def start(
        self, tool: str, *arguments: str | Path, processes: int = 1
    ) -> tuple["subprocess.Popen | Copy | Ranks", Path]:
        """Starts a tool; returns its process and the file that gets its output."""
        self.logs += 1
        log, words = self.folder / f"log_{self.logs:03}.txt", [str(argument) for argument in arguments]
        if self.preload:
            log.touch()
            if processes > 1:
                ranked = [words[0], "--launcher", "pytorch", *words[1:]]
                return Ranks(processes, self.folder, log, PRELOADED[tool], ranked), log
            return Copy(self.folder, log, PRELOADED[tool], words), log
        env = {**self.env, "NPROC_PER_NODE": str(processes)}
        with log.open("w") as file:
            process = start_bound(
                [sys.executable, str(ROOT / tool), *words], cwd=self.folder, env=env, stdout=file, stderr=file
            )
        return process, log

    def train(self, case: Case, name: str) -> tuple["subprocess.Popen | Copy | Ranks", Path]:
        """Starts or goes on with a run."""
        arguments = [case.config, "--work-dir", self.run(case, name), "--seed", "7", "--resume", "auto"]
        arguments += ["--deepspeed", case.deepspeed] if case.deepspeed else []
        return self.start("tools/train.py", *arguments, processes=case.processes)

    def export(self, case: Case, name: str, checkpoint: Path) -> tuple["subprocess.Popen | Copy | Ranks", Path]:
        """Starts an export that may replace an earlier one."""
        target = Path("exports", case.name, name)
        return self.start("tools/convert_to_official.py", case.config, checkpoint, target, "--force")

    def run(self, case: Case, name: str) -> Path:
        """A run's work directory, relative to the project."""
        return Path("runs", case.name, name)

    def newest(self, case: Case, name: str) -> Path:
        """The checkpoint that a run's pointer names."""
        return Path((self.folder / self.run(case, name) / "last_checkpoint").read_text().strip())
