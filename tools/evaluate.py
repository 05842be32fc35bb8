"""Measures a model on benchmark files, or on one's own questions with answers.

    python tools/evaluate.py exports/mine --data MMBench_DEV_EN.tsv POPE.tsv --out results/mine
    python tools/evaluate.py exports/mine --data own.jsonl --images photos --metric exact_match --out results/mine
    python tools/evaluate.py finetune_lora work_dirs/finetune_lora/iter_1000.pth --data own.jsonl --out results/lora
    python tools/evaluate.py work_dirs/finetune_lora --data own.jsonl --out results/lora --processes 2

A line of one's own file is {"image": "a.jpg", "question": "...", "answer": "..."}; docs/evaluation.md lists the known
benchmarks and metrics. Answers are appended to OUT/answers.jsonl as they come. The same command goes on with a run that
was stopped or killed, and asks nothing twice; a folder that other weights, data or settings began is refused. At the
end OUT holds results.json, items.jsonl (each question with its score) and report.html.

Exit status: 0 when every question was answered; 1 when some could not be asked or measured, or the model or the data
can't be used; 2 for a wrong command line; 130 after Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory, training config or work directory")
    parser.add_argument("checkpoint", nargs="?", help="training checkpoint, with a config or a work directory")
    parser.add_argument("--data", metavar="FILE", nargs="+", required=True, help="benchmark files, or one's own")
    parser.add_argument("--images", metavar="FOLDER", help="where the images are (default: beside each file)")
    parser.add_argument("--metric", help="for all files (default: that of each benchmark)")
    parser.add_argument("--kind", help="benchmark that the files are of (default: found out)")
    parser.add_argument(
        "--prompt", help="around each question, such as '{question} Answer briefly.' (default: the benchmark's)"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of answers and results")
    parser.add_argument("--limit", type=int, help="only the first questions of each file, for a quick look")
    parser.add_argument("--batch-size", type=int, default=8, help="questions per batch (default 8)")
    parser.add_argument("--processes", type=int, default=1, help="each with a model of its own (default 1)")
    parser.add_argument("--max-tiles", type=int, help="most tiles per image (default: the model's)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument("--template", help="of a checkpoint that was trained with several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size", "processes", "max_tiles", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give at least 1")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        text = str(error) if "--processes" in str(error) else "out of memory; try a smaller --batch-size or --max-tiles"
        print(f"error: {text}. Answers so far are in {args.out}; the same command goes on", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\nstopped; answers so far are in {args.out}; the same command goes on", file=sys.stderr)
        return 130
    return 1


def run(args: argparse.Namespace) -> int:
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    from xtuner_plugins.inference.opening import find_source

    source = find_source(args.model, args.checkpoint)
    from tqdm import tqdm

    from xtuner_plugins.evaluation.data_sets import open_data_sets
    from xtuner_plugins.evaluation.evaluation import Evaluation
    from xtuner_plugins.evaluation.table import table
    from xtuner_plugins.inference.batch_answers import Job
    from xtuner_plugins.inference.chat import printable
    from xtuner_plugins.inference.questions import Unusable

    def leave_out(name: str, each: Unusable) -> None:
        tqdm.write(printable(f"left out of {name}: {each.message}"), file=sys.stderr)

    files = {name: getattr(args, name) for name in ("metric", "kind", "prompt", "images", "limit")}
    data_sets = open_data_sets(args.data, **files)
    for data_set in data_sets:
        for each in data_set.left_out:
            leave_out(data_set.name, each)
    opening = {"device": args.device, "dtype": args.dtype, "max_tiles": args.max_tiles, "template": args.template}
    generation = {"max_new_tokens": args.max_new_tokens}
    job = Job(args.model, args.checkpoint, opening, generation, args.batch_size, args.processes, prepare=quiet_imports)
    with Evaluation(source, job, data_sets, args.out, limit=args.limit) as evaluation:
        with tqdm(total=evaluation.num_left, unit="question", desc="answering", disable=None) as bar:
            for question, answer in evaluation.answer():
                if isinstance(answer, Unusable):
                    leave_out(question.id.partition("/")[0], answer)
                bar.update()
        results = evaluation.finish()
    print(printable(f"{table(results['datasets'])}\n\nresults are in {args.out}"))
    return 1 if any(each.left_out for each in data_sets) else 0


if __name__ == "__main__":
    sys.exit(main())
