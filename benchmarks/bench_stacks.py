"""Two environments on one run: what one trains, the other goes on with, exports and opens.

    OMP_NUM_THREADS=1 python benchmarks/bench_stacks.py --other .venv-today/bin/python

Each environment makes the golden run ``--run`` whole, with a checkpoint at half. Then each goes on from the other's
checkpoint, to be compared with its own whole run; and each opens the export of the other's last checkpoint, on one
image and one question. A few minutes on two cores.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HALF = 10
TRAIN = """
import sys
from pathlib import Path
from tests.golden import runs
folder, name, *words = sys.argv[1:]
if not (Path(folder) / "base").exists():
    runs.prepare(Path(folder))
runs.train(Path(folder), name, *words)
"""
EXPORT = "import sys; from xtuner_plugins.export.export import export; export(*sys.argv[1:], dtype='float32')"
OPEN = """
import json, sys, torch, transformers
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
text = "<|im_start|>user\\n<img>" + "<IMG_CONTEXT>" * model.num_image_token + "</img>\\nWhat is it?<|im_end|>\\n"
ids = tokenizer(text, return_tensors="pt").input_ids
side = model.config.force_image_size or model.config.vision_config.image_size
pixels = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
with torch.no_grad():
    logits = model(pixel_values=pixels, input_ids=ids, image_flags=torch.ones(1, 1, dtype=torch.long)).logits
print("FOUND", json.dumps([transformers.__version__, ids[0].tolist(), logits[0, -1].tolist()]))
"""


def run(python: str, code: str, *words: object) -> str:
    """What a program prints in an environment; ends with what it printed where it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    command = [python, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def steps(path: Path) -> dict[str, list[float]]:
    """Loss and norm of the gradient of each step of a golden run."""
    from tests.golden.runs import read

    return {row["step"]: [float(row["loss"]), float(row["grad_norm"])] for row in read(path.read_text())[1]}


def largest_gap(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """Largest relative difference of the steps that both have."""
    pairs = [pair for step in one.keys() & other.keys() for pair in zip(one[step], other[step], strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", required=True, help="Python of the other environment")
    parser.add_argument("--run", default="lora", help="a golden run (default lora)")
    args = parser.parse_args()
    pythons = {"here": sys.executable, "other": os.path.abspath(args.other)}
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.run, pythons)


def compare(folder: Path, name: str, pythons: dict[str, str]) -> None:
    """Prints a line for each comparison."""
    work, table, whole = folder / name, folder / f"{name}.tsv", {}
    for which, python in pythons.items():
        shutil.rmtree(work, ignore_errors=True)
        run(python, TRAIN, folder, name, f"default_hooks.checkpoint.interval={HALF}")
        whole[which] = steps(table)
        shutil.copytree(work, folder / which)
    print(f"whole runs: largest relative gap {largest_gap(*whole.values()):.1e} over {len(whole['here'])} steps")
    for first, then in (("here", "other"), ("other", "here")):
        shutil.rmtree(work)
        shutil.copytree(folder / first, work)
        last = max(work.glob("iter_*.pth"), key=lambda path: int(path.stem.partition("_")[2]))
        last.unlink()
        (work / "last_checkpoint").write_text(str(work / f"iter_{HALF}.pth"))
        run(pythons[then], TRAIN, folder, name, f"default_hooks.checkpoint.interval={HALF}", "--resume", "auto")
        found = steps(table)
        gap = largest_gap(found, whole[then])
        print(f"begun {first}, gone on {then}: {len(found)} steps, largest relative gap {gap:.1e}")
    for which, python in pythons.items():
        last = max((folder / which).glob("iter_*.pth"), key=lambda path: int(path.stem.partition("_")[2]))
        run(python, EXPORT, folder / which / f"{name}.py", last, folder / f"{which}-export")
        opened = [
            json.loads(run(each, OPEN, folder / f"{which}-export").partition("FOUND")[2]) for each in pythons.values()
        ]
        (one, ids, logits), (two, others, theirs) = opened
        gap = max(map(math.fabs, (a - b for a, b in zip(logits, theirs, strict=True))))
        print(f"exported {which}: transformers {one} and {two}, ids equal: {ids == others}, logits within {gap:.1e}")


if __name__ == "__main__":
    main()
