"""Small faults are put into a room, one at a time: do the room's own tests see them?

    OMP_NUM_THREADS=1 python benchmarks/mutants.py --room models [--count 60] [--jobs 1] [--seed COMMIT]

Works on copies of the committed files. A mutant is one changed line, a sample of all that `OPERATORS` allow in
`xtuner_plugins/ROOM`; the same seed (the commit) gives the same sample. It is killed when `tests/ROOM` fails, or takes
five times as long as without it. The test file of the mutant's own name runs first. Survivors are listed with their
line; some change nothing that can be seen, the others want a test.
"""

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

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
# What a run doesn't do: messages, assertions, annotations' own fields are left out below.
NOT_RUN = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


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
    if isinstance(node, NOT_RUN):
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


def run_tests(copy: Path, room: str, first: str, limit: float | None) -> tuple[bool, float]:
    """(whether the room's tests pass in a copy, seconds); those of files named ``first`` come first."""
    paths = [*sorted(copy.glob(f"tests/{room}/**/{first}")), copy / "tests" / room]
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *map(str, paths)]
    start = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, cwd=copy, env=env, stdout=said, stderr=said, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with what the tests have started
            status = process.wait()
        if limit is None and status:
            said.seek(0)
            sys.exit(said.read().decode()[-3000:] + f"tests/{room} fails without a mutant")
    return status == 0, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", required=True, help="a folder of xtuner_plugins with tests of the same name")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", help="default: the commit")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            copy = Path(name, str(number))
            copy.mkdir()
            tar = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
            subprocess.run(["tar", "x", "-C", str(copy)], stdin=tar.stdout, check=True)
            copies.put(copy)
        chosen = sample(copy, args.room, args.count, args.seed or head.stdout.strip())
        _, clean = run_tests(copy, args.room, "", None)
        print(f"{len(chosen)} mutants of {args.room}; its tests take {clean:.0f} s", flush=True)

        def survives(mutant: Mutant) -> tuple[bool, str]:
            copy = copies.get()
            try:
                path = copy / mutant.path
                source = path.read_text("utf-8")
                mutated = mutant.apply(source)
                path.write_text(mutated, "utf-8")
                passed, _ = run_tests(copy, args.room, f"test_{path.name}", 5 * clean)
                path.write_text(source, "utf-8")
            finally:
                copies.put(copy)  # also after an error, which the next mutant would wait for without end
            return passed, f"{mutant.path}:{mutant.line}: {mutated.splitlines()[mutant.line - 1].strip()}"

        survivors = []
        with ThreadPoolExecutor(args.jobs) as pool:
            for passed, line in pool.map(survives, chosen):
                print(f"{'survived' if passed else 'killed  '} {line}", flush=True)
                survivors += [line] * passed
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed; survivors:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
