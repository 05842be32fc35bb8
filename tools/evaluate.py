"""Answers questions of files or about a folder of images, and measures the answers where the right ones are known.

    python tools/evaluate.py exports/mine --data own.jsonl text --images photos --out results/mine
    python tools/evaluate.py exports/mine --data MMBench_DEV_EN.tsv POPE.tsv --out results/mine
    python tools/evaluate.py work_dirs/finetune_lora --data own.jsonl --images photos --out results/lora
    python tools/evaluate.py finetune_lora work_dirs/finetune_lora/iter_1000.pth --data own.jsonl --out results/lora
    python tools/evaluate.py exports/mine --data photos --prompt "What is written on the sign?" --out answers
    python tools/evaluate.py --compare results/before results/after --html comparison.html --card exports/mine

A line of one's own file is {"image": "a.jpg", "question": "...", "answer": "..."}; docs/evaluation.md lists metrics and
known benchmarks. Answers are appended to OUT/answers.jsonl as they come. The same command goes on with a run that was
stopped or killed, and asks nothing twice; a folder that other weights, data or settings began is refused. At the end
OUT holds results.json, items.jsonl (each question with its answer and score) and report.html.

--compare takes two folders of results on the same questions: both scores, the difference with its 95 % interval and its
p-value, how many questions each answers better, a verdict (better, worse, no difference seen), and which settings
differ.
--card writes the scores before (A) and after (B) into the README.md of the export that B measured.

Exit status: 0 when every question was answered; 1 when some could not be asked or measured; 2 when the model, the data
or the command line can't be used; 130 after Ctrl-C.
"""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import add_answers, add_model, at_least, finish, make_parser, opening_of  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_model(parser, optional=True)
    data = "files of questions, folders of images, or 'text': built-in questions that show what a model has forgotten"
    parser.add_argument("--data", metavar="FILE", nargs="+", help=data)
    parser.add_argument("--images", metavar="DIR", help="where images of files are (default: beside each file)")
    parser.add_argument("--metric", help="for all files (default: that of each benchmark)")
    prompt = "around each question, e.g. '{question} Answer briefly.'; without {question} it is what images are asked"
    parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--out", metavar="DIR", help="folder of answers and results")
    parser.add_argument("--limit", type=at_least(1), help="only the first questions of each file, for a quick look")
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="questions per batch (default 8)")
    add_answers(parser, longest=None, told="128; 512 where an answer may be long")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two folders of results instead")
    group = parser.add_argument_group("with --compare")
    group.add_argument("--html", metavar="FILE", help="a page with the answers that differ")
    group.add_argument("--json", metavar="FILE", help="the numbers")
    group.add_argument("--card", metavar="DIR", help="the export that B measured, whose README.md gets both scores")
    args = parser.parse_args(argv)
    if bool(args.compare) == bool(args.model) or not args.compare and not (args.data and args.out):
        parser.error("give MODEL --data FILE --out DIR, or --compare A B")
    if args.compare and (args.data or args.out):
        parser.error("--compare takes --html, --json and --card alone; it asks nothing and writes no --out")
    if not args.compare and (args.html or args.json or args.card):
        parser.error("--html, --json and --card go with --compare; OUT holds report.html and results.json")
    return args


def compare(args: argparse.Namespace) -> None:
    from xtuner_plugins.cli.shared import prepare_outputs
    from xtuner_plugins.evaluation import compare
    from xtuner_plugins.evaluation.results import ITEMS, RESULTS, aligned, read_results
    from xtuner_plugins.inference.chat import printable

    one, other = map(read_results, args.compare)
    read = [f"{folder}/{name}" for folder in args.compare for name in (ITEMS, RESULTS)]
    prepare_outputs((args.html, args.json), read)
    compared, others = compare.compare(one, other), compare.differences(one[0], other[0])
    found = {name: each.as_json() for name, each in compared.items()}
    said = [f"{name}: {values['sentence']}" for name, values in found.items()]
    lines = [aligned(compare.comparison_table(found)), *said, *(f"differs: {each}" for each in others)]
    print(printable("\n".join(lines)))
    if args.json:
        models = {"a": one[0]["model"], "b": other[0]["model"], "differences": others}
        text = json.dumps({**models, "datasets": found}, indent=2, ensure_ascii=False)
        Path(args.json).write_text(f"{text}\n", encoding="utf-8")
    if args.card:
        from xtuner_plugins.export import card
        from xtuner_plugins.inference.opening import describe, find_source

        if describe(find_source(args.card)).weights != other[0]["model"]["weights"]:
            told = f"{args.compare[1]} was measured with other weights; evaluate this export"
            raise ValueError(f"--card {args.card}: {told}")
        card.fill(args.card, "scores", scores=compare.card_rows(found), before=one[0]["model"]["model"])
    if args.html:
        from xtuner_plugins.evaluation.page import write_comparison

        write_comparison(args.html, [one[0], other[0]], compared)


def evaluate(args: argparse.Namespace) -> int:
    from xtuner_plugins.processes import progress_bar, quiet_imports

    quiet_imports()
    from xtuner_plugins.inference.opening import find_source

    source = find_source(args.model, args.checkpoint)
    from xtuner_plugins.evaluation.benchmarks import open_data_sets
    from xtuner_plugins.evaluation.results import aligned, table
    from xtuner_plugins.evaluation.run import Evaluation
    from xtuner_plugins.inference.batch_answers import Job
    from xtuner_plugins.inference.chat import printable
    from xtuner_plugins.inference.questions import Unusable

    def left_out(name: str, each: Unusable) -> str:
        return printable(f"left out of {name}: {each.message}")

    data_sets = open_data_sets(args.data, metric=args.metric, prompt=args.prompt, images=args.images, limit=args.limit)
    for data_set in data_sets:
        for each in data_set.left_out:
            print(left_out(data_set.name, each), file=sys.stderr)
    longest = args.max_new_tokens or max(each.longest_answer for each in data_sets)
    job = Job(args.model, args.checkpoint, opening_of(args), {"max_new_tokens": longest}, args.batch_size)
    with closing(Evaluation(source, job, data_sets, args.out, limit=args.limit)) as evaluation:
        print(f"computing in {evaluation.computes_in}", file=sys.stderr)
        with progress_bar(total=len(evaluation.unanswered), unit="question", desc="answering") as bar:
            for question, answer in evaluation.answer():
                if isinstance(answer, Unusable):
                    bar.write(left_out(question.id.partition("/")[0], answer), file=sys.stderr)
                bar.update()
        results = evaluation.finish()
    print(printable(f"{aligned(table(results['datasets']))}\n\nresults are in {args.out}"))
    return int(any(each.left_out for each in data_sets))


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.compare:
        return finish(lambda: compare(args))
    so_far = f"; answers so far are in {args.out}, and the same command goes on"
    return finish(lambda: evaluate(args), smaller="--batch-size or --max-tiles", so_far=so_far)


if __name__ == "__main__":
    sys.exit(main())
