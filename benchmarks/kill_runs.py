"""Kills a training and its export at random moments, and shows what is left of it.

    python benchmarks/kill_runs.py                  # 30 kills, a table; exit status 1 where anything is wrong
    python benchmarks/kill_runs.py --kills 5 --seed 3 --out kills
    python benchmarks/kill_runs.py --preload        # where a start takes a minute, on a busy machine

A tiny LoRA run (accumulation, dropout, loading workers, samples grouped by measured lengths, a checkpoint after every
step) is first left alone, then started again and again with `--resume auto` and killed (SIGKILL) at random moments, by
turns the launcher that a user started and the training process itself. The last start goes to the end. After each kill
no process may be left; each start must come as far as it is to be killed, in ten times the usual time (no lock may hold
it up); at the end weights and export must equal, bit by bit, those of the run that was left alone.

With `--preload` each command runs in a copy (fork) of this process, which has imported everything, so that nearly all
of the time goes to what is to be killed. The launcher isn't among the victims then.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.process_table import MARK, marked, wait_until  # noqa: E402
from xtuner_plugins.engine.console import STEP_LINE  # noqa: E402
from xtuner_plugins.processes import die_with_parent, start_bound  # noqa: E402

# What runs in a copy in place of a tool; the training itself, not its launcher.
PRELOADED = {
    "tools/train.py": "xtuner_plugins.cli.train_process",
    "tools/convert_to_official.py": "tools.convert_to_official",
}
PHASES = ("starting", "measuring", "training", "saving", "exporting")
NUM_RECORDS, NUM_IMAGES, EPOCHS = 8000, 16, 3
TRIES = 5  # of a phase whose command ends before it is killed
CONFIG = """
from mmengine.config import read_base

with read_base():
    from .toy.toy_finetune_lora import *

pretrained_model_name_or_path = model.base = train_dataloader.dataset.base = "base"
model.llm_lora.lora_dropout = 0.1
train_dataloader.batch_size = 2
train_dataloader.num_workers = 1
train_dataloader.sampler.group_by = "length"
train_dataloader.dataset.update(data_paths=["data.jsonl"], image_folders=["images"], repeat_times=[0.01])
train_dataloader.dataset.cache_dir = "cache"
optim_wrapper.accumulative_counts = 2
default_hooks.logger.interval = 1
default_hooks.checkpoint.interval = 1
train_cfg.max_epochs = EPOCHS
"""


@dataclass
class Kill:
    """One row of the table."""

    phase: str
    victim: str
    reached: float  # seconds after which the command had come to the phase
    moment: float  # seconds after which it was killed
    step: int  # the last one in the log
    left: int  # processes of ours that lived on


class Copy:
    """A command in a copy of this process; as far as needed here, it looks like `subprocess.Popen`."""

    def __init__(self, folder: Path, log: Path, module: str, arguments: list[str]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                die_with_parent()
                os.chdir(folder)
                file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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


class Project:
    """A user's folder with a tiny base, data and a config; every process in it carries a mark."""

    def __init__(self, folder: Path, preload: bool):
        self.folder, self.preload = folder, preload
        self.mark = os.environ.get(MARK) or f"kill-runs-{os.getpid()}"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.env = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.logs = 0

    def make(self, seed: int) -> None:
        """Writes everything that a run needs."""
        from PIL import Image

        from xtuner_plugins.checkpoints.assembly.base import build_base
        from xtuner_plugins.toy.models import write_random_parts

        build_base(*write_random_parts(self.folder / "parts"), self.folder / "base", dtype="float32")
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        (self.folder / "configs/killed.py").write_text(CONFIG.replace("EPOCHS", str(EPOCHS)))
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

    def start(self, tool: str, *arguments: str | Path) -> tuple[subprocess.Popen | Copy, Path]:
        """Starts a tool; returns its process and the file that gets its output."""
        self.logs += 1
        log = self.folder / f"log_{self.logs:03}.txt"
        if self.preload:
            log.touch()
            return Copy(self.folder, log, PRELOADED[tool], [str(argument) for argument in arguments]), log
        command = [ROOT / tool, *arguments]
        with log.open("w") as file:
            process = start_bound(
                [sys.executable, *map(str, command)], cwd=self.folder, env=self.env, stdout=file, stderr=file
            )
        return process, log

    def train(self, name: str) -> tuple[subprocess.Popen, Path]:
        """Starts or goes on with a run."""
        arguments = ["configs/killed.py", "--work-dir", f"runs/{name}", "--seed", "7", "--resume", "auto"]
        return self.start("tools/train.py", *arguments)

    def export(self, name: str, checkpoint: Path) -> tuple[subprocess.Popen, Path]:
        """Starts an export that may replace an earlier one."""
        target = Path("exports", name)
        return self.start("tools/convert_to_official.py", "configs/killed.py", checkpoint, target, "--force")

    def newest(self, name: str) -> Path:
        """The checkpoint that a run's pointer names."""
        return Path((self.folder / "runs" / name / "last_checkpoint").read_text().strip())


def last_step(log: Path) -> int:
    """The last training step that a log tells of."""
    steps = [int(found["step"]) for found in STEP_LINE.finditer(log.read_text(errors="replace"))]
    return steps[-1] if steps else 0


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-3000:]


def finish(process: subprocess.Popen, log: Path, seconds: float) -> None:
    """Waits for a command that must succeed.

    Raises:
        SystemExit: It failed or hangs.
    """
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = f"still running after {seconds:.0f} s"
    if status != 0:
        raise SystemExit(f"a command that nobody killed failed ({status}):\n" + tail(log))


def run_alone(project: Project) -> dict[str, float]:
    """The reference: seconds of each part of an undisturbed run and export."""
    begin = time.monotonic()
    process, log = project.train("alone")
    lengths = project.folder / "cache"
    wait_until(lambda: any(lengths.glob("*.lock")) or process.poll() is not None, 1200)
    measuring = time.monotonic()
    wait_until(lambda: any(lengths.glob("*/meta.json")) or process.poll() is not None, 1200)
    measuring = time.monotonic() - measuring
    # Whoever waits for a hanging command must wait longer than a busy machine takes.
    if not wait_until(lambda: last_step(log) > 0 or process.poll() is not None, 1200):
        raise SystemExit("the undisturbed run doesn't begin:\n" + tail(log))
    seconds = {"starting": time.monotonic() - begin, "measuring": measuring}
    finish(process, log, 1800)
    seconds["step"] = (time.monotonic() - begin - seconds["starting"]) / max(1, last_step(log))
    begin = time.monotonic()
    finish(*project.export("alone", project.newest("alone")), 1200)
    return {**seconds, "exporting": time.monotonic() - begin}


def has_begun(project: Project, phase: str, log: Path, since: float) -> bool:
    """Whether a command has come to a phase."""
    folder = project.folder
    if phase == "measuring":
        return any((folder / "cache").glob("*.lock")) or last_step(log) > 0
    if phase == "training":
        return last_step(log) > 0
    if phase == "saving":
        # One that an earlier kill left is older than this start.
        return any(is_newer(path, since) for path in (folder / "runs/killed").glob(".*.partial"))
    return True


def is_newer(path: Path, since: float) -> bool:
    """Whether a file is there and was written after ``since`` (seconds of the epoch)."""
    try:
        return path.stat().st_mtime > since
    except FileNotFoundError:  # it has got its own name meanwhile
        return False


def victim_of(project: Project, process: subprocess.Popen, draw: random.Random) -> tuple[str, int]:
    """By turns the process that was started, or the training process under it."""
    for pid in project.alive():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"xtuner_plugins.cli.train_process" in command and b"configs/killed.py" in command and draw.random() < 0.5:
            return "training", pid
    return "copy" if project.preload else "launcher", process.pid


def kill_once(project: Project, phase: str, seconds: dict[str, float], draw: random.Random) -> Kill | None:
    """Starts the command of a phase and kills it at a random moment of it; None where it ended before."""
    if phase == "measuring":
        shutil.rmtree(project.folder / "cache", ignore_errors=True)
    begin, since = time.monotonic(), time.time()
    if phase == "exporting":
        process, log = project.export("killed", project.newest("alone"))
    else:
        process, log = project.train("killed")
    limit = 60 + 10 * seconds["starting"]
    while not has_begun(project, phase, log, since) and process.poll() is None:
        if time.monotonic() - begin > limit:
            raise SystemExit(f"{phase} isn't reached in {limit:.0f} s; something holds this start up:\n{tail(log)}")
        time.sleep(0.001)
    reached = time.monotonic() - begin
    spans = {**seconds, "training": 4 * seconds["step"], "saving": 0.02}
    time.sleep(draw.uniform(0, spans[phase]))
    if process.poll() is not None:
        if process.returncode != 0:
            raise SystemExit("a start that nobody killed failed:\n" + tail(log))
        return None
    name, pid = victim_of(project, process, draw)
    moment = time.monotonic() - begin
    os.kill(pid, signal.SIGKILL)
    process.wait(120)
    wait_until(lambda: not project.alive(), 30)
    kill = Kill(phase, name, reached, moment, last_step(log), len(project.alive()))
    project.end_all()
    return kill


def differing_weights(first: Path, second: Path) -> list[str]:
    """Names whose tensors differ in any bit between two checkpoints."""
    import torch

    from xtuner_plugins.engine.runtime import allow_checkpoint_types

    allow_checkpoint_types()
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    names = sorted(one.keys() | two.keys())
    return [name for name in names if name not in one or name not in two or not torch.equal(one[name], two[name])]


def differing_files(first: Path, second: Path) -> list[str]:
    """Names of files that differ between two exports. The manifest names its checkpoint, so it need only be there."""
    names = sorted({p.relative_to(d).as_posix() for d in (first, second) for p in d.rglob("*") if p.is_file()})
    same = [
        (first / name).is_file()
        and (second / name).is_file()
        and (name == "export_manifest.json" or (first / name).read_bytes() == (second / name).read_bytes())
        for name in names
    ]
    return [name for name, equal in zip(names, same, strict=True) if not equal]


def phases_of(kills: int, draw: random.Random) -> list[str]:
    """Each phase equally often (the first ones once more where it doesn't come out even), in random order."""
    chosen = [PHASES[index % len(PHASES)] for index in range(kills)]
    draw.shuffle(chosen)
    return chosen


def run(project: Project, kills: int, seed: int) -> int:
    """Everything, from the undisturbed run to the verdict; returns the exit status."""
    draw = random.Random(seed)
    project.make(seed)
    seconds = run_alone(project)
    print("undisturbed: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)
    print("kill  phase      victim    reached s  killed s  step  left", flush=True)
    table: list[Kill] = []
    for phase in phases_of(kills, draw):
        for _ in range(TRIES):
            kill = kill_once(project, phase, seconds, draw)
            if kill is not None:
                break
            print(f"      {phase}: the command ended before its moment came", flush=True)
        else:
            continue
        table.append(kill)
        print(
            f"{len(table):>4}  {kill.phase:<10} {kill.victim:<9} {kill.reached:>9.1f} {kill.moment:>9.1f} "
            f"{kill.step:>5} {kill.left:>5}",
            flush=True,
        )
    finish(*project.train("killed"), 1800)
    finish(*project.export("killed", project.newest("killed")), 1200)
    weights = differing_weights(*(project.folder / project.newest(name) for name in ("alone", "killed")))
    files = differing_files(*(project.folder / "exports" / name for name in ("alone", "killed")))
    beside = sorted({path.name for path in (project.folder / "exports").iterdir()} - {"alone", "killed"})
    partial = sorted(path.name for path in (project.folder / "runs/killed").glob(".*"))
    verdict = {
        f"kills: {len(table)} of {kills}": len(table) == kills,
        f"processes left: {sum(kill.left for kill in table)}": not any(kill.left for kill in table),
        f"weights that differ: {len(weights)}": not weights,
        f"files of the export that differ: {files or 0}": not files,
        f"left beside checkpoints and export: {partial + beside or 0}": not (partial + beside),
    }
    print()
    for sentence, good in verdict.items():
        print(("ok      " if good else "WRONG   ") + sentence)
    return 0 if all(verdict.values()) else 1


def preload() -> None:
    """Imports what the commands import, and nothing that starts a thread."""
    import peft  # noqa: F401
    import torch
    import xtuner.tools.train  # noqa: F401

    import xtuner_plugins.checkpoints.export
    import xtuner_plugins.engine
    import xtuner_plugins.models  # noqa: F401

    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of phases, moments and victims")
    parser.add_argument("--out", type=Path, help="work in this folder, which must be new, and keep it")
    parser.add_argument("--preload", action="store_true", help="run the commands in copies of this process")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would warn at every start of a command
    if args.preload:
        if MARK not in os.environ:  # The kernel shows the environment that a process began with.
            environment = {**os.environ, MARK: f"kill-runs-{os.getpid()}", "OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, *sys.argv], environment)
        preload()
    if args.out:
        args.out.mkdir(parents=True)
    folder = args.out or Path(tempfile.mkdtemp(prefix="kill_runs_"))
    project = Project(folder.resolve(), args.preload)
    try:
        return run(project, args.kills, args.seed)
    finally:
        project.end_all()
        if not args.out:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
