"""Kills trainings and their exports at random moments, and shows what is left of them.

    python benchmarks/kill_runs.py                  # 50 kills over 10 cases; exit status 1 where anything is wrong
    python benchmarks/kill_runs.py --kills 6 --cases plain-lora,zero2-full --seed 3 --out kills

The cases are plain, DDP and ZeRO-1 to 3, with full, LoRA and QLoRA training (`CASES`): tiny runs with
accumulation, dropout (of adapters), loading workers, samples grouped by measured lengths and a checkpoint after every
step. Each run is first left alone, then started again and again with `--resume auto` and killed (SIGKILL) at random
moments of its phases, `saving` among them: by turns the launcher that a user started and one training process. The last
start goes to the end. After each kill no process may be left; each start must come as far as it is to be killed, in ten
times the usual time (no lock may hold it up); at the end weights, optimizer state and export must equal, bit by bit,
those of the run that was left alone.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils._pytree import keystr, tree_flatten_with_path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.process_table import MARK, marked, wait_until  # noqa: E402
from xtuner_plugins.datasets.plan.lengths import KEPT  # noqa: E402
from xtuner_plugins.engine.watch.console import STEP_LINE  # noqa: E402
from xtuner_plugins.export.base.build import build_base  # noqa: E402
from xtuner_plugins.processes import start_bound  # noqa: E402
from xtuner_plugins.toy.models import write_random_parts  # noqa: E402

PHASES = ("starting", "measuring", "training", "saving", "exporting")
TRIES = 5  # of a phase whose command ends before it is killed
FOLLOWS_IN = 60  # seconds in which the processes that weren't killed must end


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


class Case(NamedTuple):
    """What trains, and how: a leaf ``toy_finetune_*`` on a global batch of 4 in two micro-batches.

    Attributes:
        leaf: ``full``, ``lora`` or ``qlora``; those with adapters have dropout.
        strategy: ``plain``, ``ddp``, or ``zero1`` to ``zero3``; all but the first train on two ranks.
    """

    leaf: str
    strategy: str

    @property
    def name(self) -> str:
        """Such as ``zero2-lora``."""
        return f"{self.strategy}-{self.leaf}"

    @property
    def config(self) -> str:
        """Its file in the project."""
        return f"configs/{self.name.replace('-', '_')}.py"

    @property
    def processes(self) -> int:
        """Ranks."""
        return 1 if self.strategy == "plain" else 2


CASES = {
    name: Case(*name.split("-")[::-1])
    for name in """plain-lora zero2-full plain-qlora ddp-lora zero3-full plain-full zero1-lora zero2-qlora ddp-full
    zero3-lora""".split()
}


class Project:
    """A user's folder with a tiny base, data and a config per case; every process in it carries a mark."""

    def __init__(self, folder: Path):
        self.folder, self.mark = folder, f"kill-runs-{os.getpid()}"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.env = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.env["XTUNER_PLUGINS_CACHE"] = str(folder / "cache")
        self.logs = 0

    def make(self, seed: int) -> None:
        """Writes everything that a run needs."""
        build_base(*write_random_parts(self.folder / "parts"), self.folder / "base", dtype="float32")
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        for case in CASES.values():
            dropout = "" if case.leaf == "full" else "model.llm_lora.lora_dropout = 0.1"
            text = CONFIG.format(leaf=case.leaf, dropout=dropout, batch_size=2 // case.processes, epochs=EPOCHS)
            (self.folder / case.config).write_text(text)
        (self.folder / "images").mkdir()
        draw = random.Random(seed)
        for index in range(NUM_IMAGES):
            size = (draw.choice([112, 224, 336]), draw.choice([112, 224]))
            image = Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3)))
            image.save(self.folder / f"images/{index}.png")
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
        arguments += ["--deepspeed", f"deepspeed_{case.strategy}"] if case.strategy.startswith("zero") else []
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


class Kill(NamedTuple):
    """One row of the table."""

    case: str
    phase: str
    victim: str
    reached: float  # seconds after which the command had come to the phase
    moment: float  # seconds after which it was killed
    step: int  # the last one in the log
    left: int  # processes of ours that lived on

    def __str__(self) -> str:
        return "{:<11}  {:<9}  {:<8}  {:>9.1f}  {:>8.1f}  {:>4}  {:>4}".format(*self)


HEADER = "kill  case         phase      victim    reached s  killed s  step  left"


def last_step(log: Path) -> int:
    """The last training step that a log tells of."""
    steps = [int(found["step"]) for found in STEP_LINE.finditer(log.read_text(errors="replace"))]
    return steps[-1] if steps else 0


def tail(log: Path) -> str:
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


def run_alone(project: Project, case: Case) -> dict[str, float]:
    """The reference: seconds of each part of an undisturbed run and export."""
    shutil.rmtree(project.folder / "cache", ignore_errors=True)
    begin = time.monotonic()
    process, log = project.train(case, "alone")
    cache = project.folder / "cache"
    wait_until(lambda: any(cache.glob("*.lock")) or process.poll() is not None, 1200)
    measuring = time.monotonic()
    wait_until(lambda: any(cache.glob(f"*/{KEPT}")) or process.poll() is not None, 1200)
    measuring = time.monotonic() - measuring
    if process.poll() is not None:
        raise SystemExit("the undisturbed run ended before its lengths were seen in the cache:\n" + tail(log))
    # Whoever waits for a hanging command must wait longer than a busy machine takes.
    if not wait_until(lambda: last_step(log) > 0 or process.poll() is not None, 1200):
        raise SystemExit("the undisturbed run doesn't begin:\n" + tail(log))
    seconds = {"starting": time.monotonic() - begin, "measuring": measuring}
    finish(process, log, 1800)
    seconds["step"] = (time.monotonic() - begin - seconds["starting"]) / max(1, last_step(log))
    begin = time.monotonic()
    finish(*project.export(case, "alone", project.newest(case, "alone")), 1200)
    return {**seconds, "exporting": time.monotonic() - begin}


def has_begun(project: Project, case: Case, phase: str, log: Path, since: float) -> bool:
    """Whether a command that was started at ``since`` (seconds of the epoch) has come to a phase."""
    if phase == "measuring":
        return any((project.folder / "cache").glob("*.lock")) or last_step(log) > 0
    if phase == "saving":  # one that an earlier kill left is older than this start
        partial = (project.folder / project.run(case, "killed")).glob(".*.partial")
        with contextlib.suppress(FileNotFoundError):  # it has got its own name meanwhile
            return any(path.stat().st_mtime > since for path in partial)
        return False
    return phase != "training" or last_step(log) > 0


def victim_of(project: Project, case: Case, process: subprocess.Popen, draw: random.Random) -> tuple[str, int]:
    """By turns the process that was started, or a training process under it."""
    words = (b"xtuner_plugins.engine.launch.train_process", Path(case.config).name.encode())
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in sorted(project.alive())}
    training = [pid for pid, command in commands.items() if all(word in command for word in words)]
    if training and draw.random() < 0.5:
        return "training", draw.choice(training)
    return "launcher", process.pid


def kill_once(project: Project, case: Case, phase: str, seconds: dict[str, float], draw: random.Random) -> Kill | None:
    """Starts the command of a phase and kills it at a random moment of it; None where it ended before."""
    if phase == "measuring":
        shutil.rmtree(project.folder / "cache", ignore_errors=True)
    begin, since = time.monotonic(), time.time()
    if phase == "exporting":
        process, log = project.export(case, "killed", project.newest(case, "alone"))
    else:
        process, log = project.train(case, "killed")
    limit = 60 + 10 * seconds["starting"]
    while not has_begun(project, case, phase, log, since) and process.poll() is None:
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
    name, pid = victim_of(project, case, process, draw)
    moment = time.monotonic() - begin
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs is among those that are left
        process.wait(FOLLOWS_IN)
    wait_until(lambda: not project.alive(), 30)
    kill = Kill(case.name, phase, name, reached, moment, last_step(log), len(project.alive()))
    project.end_all()
    return kill


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a plain checkpoint, or all tensors of a DeepSpeed directory, by their place."""
    found = {}
    for file in sorted(path.rglob("*.pt")) if path.is_dir() else [path]:
        saved = torch.load(file, map_location="cpu", weights_only=False)
        kept, name = (saved, file.name) if path.is_dir() else ([saved["state_dict"], saved["optimizer"]], "")
        leaves, _ = tree_flatten_with_path(kept)
        found |= {name + keystr(place): leaf for place, leaf in leaves if isinstance(leaf, torch.Tensor)}
    if not found:
        raise SystemExit(f"{path} holds no tensor of weights or optimizer")
    return found


def differing_tensors(first: Path, second: Path) -> list[str]:
    """Names of the tensors that differ in any bit between two checkpoints, or are in one only."""
    one, other = tensors_of(first), tensors_of(second)
    both = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {name for name in both if not torch.equal(one[name], other[name])})


def differing_files(first: Path, second: Path) -> list[str]:
    """Names of files that differ between two exports; manifest and card, which name their run, need only be there."""
    names = {path.relative_to(folder) for folder in (first, second) for path in folder.rglob("*") if path.is_file()}
    _, differing, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    return sorted({*map(str, differing)} - {"export_manifest.json", "README.md"} | {*map(str, missing)})


def kill_case(project: Project, case: Case, phases: list[str], draw: random.Random, before: int) -> list[Kill]:
    """Prints and returns a case's rows; ``before`` counts those of other cases."""
    seconds = run_alone(project, case)
    print(f"{case.name} undisturbed: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    print(HEADER, flush=True)
    table: list[Kill] = []
    for phase in phases:
        for _ in range(TRIES):
            kill = kill_once(project, case, phase, seconds, draw)
            if kill is not None:
                table.append(kill)
                print(f"{before + len(table):>4}  {kill}", flush=True)
                break
            print(f"      {case.name} {phase}: the command ended before its moment came", flush=True)
    return table


def judge(project: Project, case: Case) -> dict[str, bool]:
    """Lets a killed run go to its end and compares it; sentences, and whether each is good."""
    finish(*project.train(case, "killed"), 1800)
    finish(*project.export(case, "killed", project.newest(case, "killed")), 1200)
    folder = project.folder / "exports" / case.name
    tensors = differing_tensors(*(project.folder / project.newest(case, name) for name in ("alone", "killed")))
    files = differing_files(*(folder / name for name in ("alone", "killed")))
    beside = sorted({path.name for path in folder.iterdir()} - {"alone", "killed"})
    partial = sorted(path.name for path in (project.folder / project.run(case, "killed")).glob(".*"))
    for name in ("runs", "exports"):
        shutil.rmtree(project.folder / name / case.name)
    return {
        f"{case.name}: tensors of weights and optimizer that differ: {len(tensors)}": not tensors,
        f"{case.name}: files of the export that differ: {files or 0}": not files,
        f"{case.name}: left beside checkpoints and export: {partial + beside or 0}": not (partial + beside),
    }


def run(project: Project, cases: list[Case], kills: int, seed: int) -> int:
    """Everything, from the undisturbed runs to the verdict; returns the exit status."""
    draw = random.Random(seed)
    project.make(seed)
    table: list[Kill] = []
    verdict: dict[str, bool] = {}
    for number, case in enumerate(cases):
        # Each case and each phase is as often its turn as comes out even.
        phases = [PHASES[(number + each // len(cases)) % len(PHASES)] for each in range(number, kills, len(cases))]
        draw.shuffle(phases)
        if phases:
            table += kill_case(project, case, phases, draw, len(table))
            verdict |= judge(project, case)
    verdict |= {
        f"kills: {len(table)} of {kills}": len(table) == kills,
        f"processes left: {sum(kill.left for kill in table)}": not any(kill.left for kill in table),
    }
    print()
    for sentence, good in verdict.items():
        print(("ok      " if good else "WRONG   ") + sentence)
    return 0 if all(verdict.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    names = f"names, separated by commas (default: {', '.join(CASES)})"
    parser.add_argument("--cases", default=",".join(CASES), help=names)
    parser.add_argument("--seed", type=int, default=0, help="of phases, moments and victims")
    parser.add_argument("--out", type=Path, help="work in this folder, which must be new, and keep it")
    args = parser.parse_args()
    if unknown := [name for name in args.cases.split(",") if name not in CASES]:
        parser.error(f"--cases: unknown: {', '.join(unknown)} (known: {', '.join(CASES)})")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would warn at every start of a command
    if args.out:
        args.out.mkdir(parents=True)
    folder = args.out or Path(tempfile.mkdtemp(prefix="kill_runs_"))
    project = Project(folder.resolve())
    try:
        return run(project, [CASES[name] for name in args.cases.split(",")], args.kills, args.seed)
    finally:
        project.end_all()
        if not args.out:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
