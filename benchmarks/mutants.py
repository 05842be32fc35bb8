"""Small faults are put into a room, one at a time: do the room's own tests see them?

    OMP_NUM_THREADS=1 python benchmarks/mutants.py --room models [--count 60] [--jobs 1] [--seed COMMIT]

Works on copies of the committed files. A mutant is one changed line, a sample of all that `OPERATORS` allow in
`xtuner_plugins/ROOM`; the same seed (the commit) gives the same sample. It is killed when `tests/ROOM` fails, or takes
five times as long as without it. The test file of the mutant's own name runs first. Survivors are listed with their
line; some change nothing that can be seen, the others want a test.
"""

import argparse
import ast
import contextlib
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Operator of the syntax tree: its text, and what stands there instead.
OPERATORS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
}
# What a run doesn't do: messages and assertions; annotations are left out below.
NOT_RUN = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
GUARDS = ("strict", "frozen")  # arguments that only a mistake in the code itself would run into


@dataclass(frozen=True, order=True)
class Mutant:
    """``line`` (from 1) of ``path`` with the characters from ``start`` to ``end`` replaced by ``new``."""

    path: str
    line: int
    start: int
    end: int
    new: str

    def apply(self, source: str) -> str:
        """The mutated source."""
        lines = source.splitlines(keepends=True)
        text = lines[self.line - 1]
        lines[self.line - 1] = text[: self.start] + self.new + text[self.end :]
        return "".join(lines)


def mutants(source: str, path: str) -> Iterator[Mutant]:
    """All mutants of a file: operators, and/or, ``not``, numbers, True/False, returned values, statements that call."""
    lines = source.splitlines()

    def replaced(node: ast.AST, new: str) -> Iterator[Mutant]:
        if node.lineno == node.end_lineno:
            yield Mutant(path, node.lineno, *columns(node), new)

    def columns(node: ast.AST) -> tuple[int, int]:
        """Columns in characters, which the tree counts in bytes."""
        raw = lines[node.lineno - 1].encode()
        return len(raw[: node.col_offset].decode()), len(raw[: node.end_col_offset].decode())

    def between(left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator[Mutant]:
        if left.end_lineno != right.lineno or left.lineno != left.end_lineno:
            return
        start, end = columns(left)[1], columns(right)[0]
        old, new = OPERATORS[type(operator)]
        word = rf"\b{old}\b" if old.isalpha() or " " in old else re.escape(old)
        if found := re.search(word, lines[left.lineno - 1][start:end]):
            yield Mutant(path, left.lineno, start + found.start(), start + found.end(), new)

    for node in executed(ast.parse(source)):
        match node:
            case ast.Compare():
                for operator, sides in zip(node.ops, pairwise([node.left, *node.comparators]), strict=True):
                    yield from between(*sides, operator)
            case ast.BoolOp():
                for sides in pairwise(node.values):
                    yield from between(*sides, node.op)
            case ast.BinOp() if type(node.op) in OPERATORS:
                yield from between(node.left, node.right, node.op)
            case ast.UnaryOp(op=ast.Not()):
                start = columns(node)[0]
                yield Mutant(path, node.lineno, start, start + len("not"), "")
            case ast.Constant(value=bool(value)):
                yield from replaced(node, str(not value))
            case ast.Constant(value=int(value)):
                yield from replaced(node, str(value + 1))
            case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
                yield from replaced(value, "None")
            case ast.Expr(value=ast.Call()):
                yield from replaced(node, "pass")


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of the tree, without messages, assertions, imports and annotations."""
    if isinstance(node, NOT_RUN) or isinstance(node, ast.keyword) and node.arg in GUARDS:
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from executed(child)


def sample(root: Path, room: str, count: int, seed: str) -> list[Mutant]:
    """``count`` mutants of a room, or all; the same for the same seed and files."""
    files = sorted((root / "xtuner_plugins" / room).rglob("*.py"))
    found = {each for path in files for each in mutants(path.read_text("utf-8"), str(path.relative_to(root)))}
    return sorted(random.Random(f"{seed} {room}").sample(sorted(found), min(count, len(found))))


def start_tests(copy: Path, room: str, first: str) -> int:
    """Starts the room's tests of a copy in a fork of this process, those of files named ``first`` first.

    What is imported here isn't imported again. The fork writes what the tests say to `said`, and to `imported` the
    names of the modules that they have loaded.

    Returns:
        The id of the process, which leads a group of its own and ends with pytest's status.
    """
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(copy))
    said = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    paths = [*sorted(copy.glob(f"tests/{room}/**/{first}")), copy / "tests" / room]
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *map(str, paths)])
    Path("imported").write_text("\n".join(sys.modules), "utf-8")
    os._exit(status)


def finished(pid: int, wait: bool = False) -> int | None:
    """The exit status of a process, None while it runs."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def import_packages(copy: Path) -> None:
    """Imports the installed packages whose modules the tests of a copy have loaded."""
    ours = {path.stem for path in copy.iterdir()} | {"__main__", "conftest"}
    for name in (copy / "imported").read_text("utf-8").splitlines():
        if name.split(".")[0] not in ours:
            with contextlib.suppress(Exception):  # what can't be imported here is imported by each run
                importlib.import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", required=True, help="a folder of xtuner_plugins with tests of the same name")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", help="default: the commit")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copies = [Path(name, str(number)) for number in range(args.jobs)]
        for copy in copies:
            copy.mkdir()
            tar = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
            subprocess.run(["tar", "x", "-C", str(copy)], stdin=tar.stdout, check=True)
        chosen = sample(copy, args.room, args.count, args.seed or head.stdout.strip())
        start = time.monotonic()
        if finished(start_tests(copy, args.room, ""), wait=True):
            sys.exit((copy / "said").read_text("utf-8")[-3000:] + f"tests/{args.room} fails without a mutant")
        limit = 5 * (time.monotonic() - start)
        print(f"{len(chosen)} mutants of {args.room}; its tests take {limit / 5:.0f} s", flush=True)
        import_packages(copy)
        waiting, running, survivors = chosen[::-1], {}, []
        while waiting or running:
            while waiting and copies:
                mutant, copy = waiting.pop(), copies.pop()
                source = (copy / mutant.path).read_text("utf-8")
                (copy / mutant.path).write_text(mutant.apply(source), "utf-8")
                pid = start_tests(copy, args.room, f"test_{Path(mutant.path).name}")
                running[pid] = mutant, copy, source, time.monotonic() + limit
            for pid, (mutant, copy, source, until) in list(running.items()):
                status = finished(pid)
                if status is None and time.monotonic() < until:
                    continue
                with contextlib.suppress(ProcessLookupError):  # what the tests have started ends, too
                    os.killpg(pid, signal.SIGKILL)
                status = finished(pid, wait=True) if status is None else status
                line = f"{mutant.path}:{mutant.line}: {mutant.apply(source).splitlines()[mutant.line - 1].strip()}"
                print(f"{'killed  ' if status else 'survived'} {line}", flush=True)
                survivors += [] if status else [line]
                (copy / mutant.path).write_text(source, "utf-8")
                copies.append(running.pop(pid)[1])
            time.sleep(0.05)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed; survivors:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
