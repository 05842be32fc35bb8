"""Tells where other engines part from ours on the same questions: tiles, prompt, log probabilities or answer.

    python tools/compare_engines.py exports/mine photos --prompt "What is written on the sign?"
    python tools/compare_engines.py exports/mine photos --data questions.jsonl --out engines.json --html engines.html
    python tools/compare_engines.py exports/mine photos --prompt ... --server http://127.0.0.1:8000/v1 --model mine

Runs transformers' own InternVL and llama.cpp, if they are installed and can run the model, on forms of EXPORT made in a
temporary folder (or given by --hf and --gguf), and asks each --server: vLLM, SGLang, lmdeploy, llama-server, ours. The
environment variable OPENAI_API_KEY holds the key if servers want one. A line of --data is as for tools/answer.py. Other
tiles make another prompt, and so on: the first stage that differs is the one to look at.

Exit status: 0 when all engines that ran agree with ours; 1 when one doesn't, an engine that you named can't be run, an
image can't be read, or the model can't be used; 2 for a wrong command line; 130 after Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

MOST_DETAILS = 5  # lines per engine; files have all


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="export or base")
    parser.add_argument("images", nargs="?", help="folder: ask about each of its images; with --data, where images are")
    parser.add_argument("--prompt", help="the question; with --data, that of lines without one")
    parser.add_argument("--data", metavar="FILE", help="questions, a JSON object per line")
    parser.add_argument("--limit", type=int, default=20, help="questions to ask, the first ones (default 20)")
    parser.add_argument("--only", action="append", default=[], choices=("transformers", "llama.cpp"), help="run this")
    parser.add_argument("--hf", metavar="DIR", help="the export's hf form (default: made for the comparison)")
    parser.add_argument("--gguf", nargs=2, metavar=("MODEL", "MMPROJ"), help="its GGUF files (default: likewise)")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="OpenAI-style server, up to /v1")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="the export's name at --server")
    parser.add_argument(
        "--resize-to-grid", action="store_true", help="send images to llama.cpp and servers at their grid's size"
    )
    parser.add_argument("--max-new-tokens", type=int, default=16, help="longest answer (default 16)")
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="of log probabilities (default 0.02, for float32)"
    )
    parser.add_argument("--out", metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write a page")
    parser.add_argument("--device", default="auto", help="of ours and transformers (default auto)")
    parser.add_argument("--dtype", default="auto", help="likewise: auto, float32, bfloat16 or float16 (default auto)")
    args = parser.parse_args(argv)
    if not args.data and not (args.images and args.prompt):
        parser.error("give IMAGES and --prompt, or --data")
    if len(args.server) != len(args.model):
        parser.error("--server URL and --model NAME go together, one of each per server")
    for name in ("limit", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if not args.tolerance >= 0:
        parser.error(f"--tolerance {args.tolerance}: give 0 or more")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing is written", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    from xtuner_plugins.inference.opening import find_source

    source = find_source(args.export)
    if source.checkpoint is not None:
        raise ValueError(f"{args.export} is a training run; export it first: xtp export")
    from tqdm import tqdm
    from transformers.utils import logging

    from xtuner_plugins.inference.engine_report import Settings, run_engines, write_json, write_page
    from xtuner_plugins.inference.questions import Question, Unusable, from_file, from_folder

    logging.set_verbosity_error()
    given = list(from_file(args.data, args.images, args.prompt) if args.data else from_folder(args.images, args.prompt))
    if not given:
        raise ValueError(f"{args.data or args.images} holds no {'question' if args.data else 'image'}")
    asked = given[: args.limit]
    settings = Settings(
        only=args.only,
        hf=args.hf and Path(args.hf),
        gguf=args.gguf and tuple(map(Path, args.gguf)),
        servers=list(zip(args.server, args.model, strict=True)),
        resize=args.resize_to_grid,
        max_new_tokens=args.max_new_tokens,
        tolerance=args.tolerance,
        device=args.device,
        dtype=args.dtype,
    )
    with tqdm(unit="question", disable=None) as bar:

        def begin(name: str, total: int) -> None:
            bar.reset(total)
            bar.set_description(name)

        questions = [each for each in asked if isinstance(each, Question)]
        report = run_engines(args.export, questions, settings, begin=begin, advance=bar.update)
    report.unusable = [*(each for each in asked if isinstance(each, Unusable)), *report.unusable]
    if args.out:
        write_json(args.out, report)
    if args.html:
        write_page(args.html, report)
    show(report, len(given))
    return 0 if report.agrees else 1


def show(report, num_given: int) -> None:
    """Prints the table, each engine's total with details and advice, and what was not run."""
    from rich.console import Console
    from rich.table import Table

    from xtuner_plugins.inference.compare_engines import STAGES
    from xtuner_plugins.inference.engine_report import details
    from xtuner_plugins.inference.terminal_output import printable

    table = Table()
    short = {"log probabilities": "log prob."}
    for column in ("question", "engine", *(short.get(stage, stage) for stage in STAGES), "parts at"):
        table.add_column(column, overflow="fold")
    for name, rows in report.compared.items():
        for row in rows:
            cells = [row.findings[stage].figure if row.findings else "-" for stage in STAGES]
            table.add_row(printable(row.question), name, *cells, "failed" if row.failure else row.parts_at or "")
    if report.compared:
        Console(highlight=False, markup=False).print(table)
        print("In parentheses: ours. Log prob.: largest difference of log probabilities of the first token.")
    for name in report.compared:
        print(f"{name}: {report.total(name)}")
        found = details(report, name)
        for question, text in list(found.items())[:MOST_DETAILS]:
            print(printable(f"  {question}: {text}"))
        if len(found) > MOST_DETAILS:
            print(f"  and {len(found) - MOST_DETAILS:,} more; --out and --html tell all")
        for line in report.advice[name]:
            print(f"  {line}")
    for name, reason in report.not_run.items():
        print(printable(f"{name}: not run: {reason}"))
    for each in report.unusable:
        print(printable(f"left out: {each.message}"))
    asked = len(report.references) + len(report.unusable)
    if asked < num_given:
        print(f"the first {asked:,} of {num_given:,} questions; --limit asks more")


if __name__ == "__main__":
    sys.exit(main())
