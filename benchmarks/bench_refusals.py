"""How soon is a wrong input refused, and in how many lines? Each row of the table in a process of its own.

    python benchmarks/bench_refusals.py [--write]

Prints for each row the exit status, lines on stderr, and seconds of processor time of `tools/train.py` with all that it
starts; then how many rows are refused in one line within 1 and 10 s. `--write` keeps them in
`tests/golden/kept/wrong_inputs.tsv`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.golden import wrong_inputs  # noqa: E402
from tests.golden.recorder import machine  # noqa: E402
from tests.golden.runs import prepare  # noqa: E402

KEPT = ROOT / "tests" / "golden" / "kept" / "wrong_inputs.tsv"


def spent() -> float:
    """Processor seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures")
    args = parser.parse_args()
    lines, seconds = [f"# {date.today()}, {machine()}", "status\tlines\tseconds\tinput"], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        (folder / "wrong").mkdir()
        found = wrong_inputs.places(folder / "wrong", folder / "base")
        for row in wrong_inputs.rows():
            before = spent()
            words = [sys.executable, str(ROOT / "tools/train.py"), *wrong_inputs.command(row, found)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
            took, told = spent() - before, done.stderr.splitlines()
            is_refused = done.returncode != 0 and len(told) == 1 and wrong_inputs.is_told(row, found, told[0])
            seconds.append(took if is_refused else float("inf"))
            lines.append(f"{done.returncode}\t{len(told)}\t{took:.2f}\t{row['config']} {row['words']}".rstrip())
            print(lines[-1], *([] if is_refused else told[-3:]), sep="\n", flush=True)
    within = [sum(each <= limit for each in seconds) for limit in (1, 10)]
    print(f"{len(seconds)} wrong inputs: {within[0]} refused in one line within 1 s, {within[1]} within 10 s")
    if args.write:
        KEPT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
