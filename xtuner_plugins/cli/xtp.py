"""The command ``xtp``: ``xtp NAME ...`` becomes ``python tools/NAME.py ...``, in a checkout and after an install.

Every tool is a subcommand, under its file's name with dashes; some have a shorter name besides.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..settings import ROOT, ConfigError, did_you_mean

SHORT = {
    "build": "build_base_model",
    "check": "check_data",
    "demo": "web_demo",
    "eval": "evaluate",
    "export": "convert_to_official",
    "prepare": "prepare_data",
}
# Commands of the release before: what does the same now.
OLD = {
    "answer": "xtp evaluate MODEL --data FOLDER --prompt TEXT --out DIR",
    "compare": "xtp evaluate --compare A B",
    "compare_engines": "vllm serve MODEL; docs/parity.md says how answers compare",
    "convert_to_gguf": "xtp export --from MODEL OUT --format gguf, then llama-quantize",
    "extract": "xtp build, whose --vision, --llm and --projector take whole models",
    "import_config": "xtp configs --from-xtuner CONFIG",
    "import_xtuner_config": "xtp configs --from-xtuner CONFIG",
    "list_configs": "xtp configs",
    "measure_lengths": "xtp check CONFIG",
    "new_config": "xtp configs NAME --write FILE",
    "print_config": "xtp configs NAME",
    "quickstart": "make quickstart",
    "selftest": "xtp train CONFIG --dry-run",
    "serve": "vllm serve MODEL, transformers serve, or xtp demo MODEL (docs/using.md)",
    "show_batch": "xtp check CONFIG --step N",
    "vlmevalkit": "a config of six lines, in docs/evaluation.md",
    "write_vlmevalkit_config": "a config of six lines, in docs/evaluation.md",
}
USAGE_ERROR = 2


def tools() -> dict[str, Path]:
    """The file of each subcommand by its name, short names instead of long ones."""
    short = {stem: name for name, stem in SHORT.items()}
    return {short.get(path.stem, path.stem.replace("_", "-")): path for path in sorted((ROOT / "tools").glob("*.py"))}


def find_tool(name: str) -> Path:
    """The file of a subcommand, by its short name, its long one, or the file's.

    Raises:
        ConfigError: There is none; names what replaced it, or the nearest ones.
    """
    stem = name.replace("-", "_").removesuffix(".py")
    path, known = ROOT / "tools" / f"{SHORT.get(stem, stem)}.py", tools()
    if path in known.values():
        return path
    if stem in OLD:
        raise ConfigError(f"{name} is now: {OLD[stem]}")
    hint = did_you_mean(name, [*known, *SHORT.values()], "xtp --help lists the commands", n=2)
    raise ConfigError(f"there is no command {name!r}; {hint}")


def overview() -> str:
    """The text of ``xtp --help``: each tool with the first line of its docstring."""
    lines = ["usage: xtp COMMAND ...", "", "`xtp COMMAND --help` tells more. The commands are those of tools/:", ""]
    known = tools()
    width = max(map(len, known)) + 2
    for name, path in sorted(known.items()):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<{width}}{text.partition(chr(10))[0]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes the tool's process, so that signals and exit status are the tool's own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0 if argv else USAGE_ERROR
    try:
        path = find_tool(argv[0])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(path), *argv[1:]])
