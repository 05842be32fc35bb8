"""Answers questions about a folder of images, or those of a file.

    python tools/answer.py exports/mine --images photos --prompt "What is written on the sign?" --out answers.jsonl
    python tools/answer.py exports/mine --data questions.jsonl --images photos --out answers.jsonl
    python tools/answer.py finetune_lora work_dirs/finetune_lora/iter_1000.pth --images photos --prompt ... --out ...
    python tools/answer.py work_dirs/finetune_lora --images photos --prompt ... --out answers.jsonl

A line of --data is {"id": "7", "image": "a.jpg", "question": "..."}; "images" takes a list, and --prompt is asked where
a line has no question. Answers are appended to --out as they come. The same command goes on with a run that was
stopped, and asks nothing twice. Questions whose image can't be read are named and left out.

Exit status: 0 when every question is answered; 1 when some could not be asked, or the model can't be used; 2 for a
wrong command line; 130 after Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory, training config or work directory")
    parser.add_argument("checkpoint", nargs="?", help="training checkpoint, with a config or a work directory")
    parser.add_argument(
        "--images", metavar="FOLDER", help="ask about each of its images; with --data, where images are"
    )
    parser.add_argument("--data", metavar="FILE", help="questions, a JSON object per line")
    parser.add_argument("--prompt", help="the question; with --data, that of lines without one")
    parser.add_argument("--out", metavar="FILE", required=True, help="answers, a JSON object per line")
    parser.add_argument("--csv", metavar="FILE", help="also write all answers as a table")
    parser.add_argument("--batch-size", type=int, default=1, help="questions per batch (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="each with a model of its own (default 1)")
    parser.add_argument("--max-tiles", type=int, help="most tiles per image (default: the model's)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples (default 0)")
    parser.add_argument("--template", help="of a checkpoint that was trained with several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    args = parser.parse_args(argv)
    if not args.data and not (args.images and args.prompt):
        parser.error("give --images and --prompt, or --data")
    for name in ("batch_size", "processes", "max_tiles", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give at least 1")
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature}: give 0 or more")
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

    from xtuner_plugins.inference.answer_file import AnswerFile, write_csv
    from xtuner_plugins.inference.batch_answers import Job, answer_all
    from xtuner_plugins.inference.chat import printable
    from xtuner_plugins.inference.questions import Question, Unusable, from_file, from_folder

    if args.images and not Path(args.images).is_dir():
        raise ValueError(f"--images {args.images}: no such folder")
    given = list(from_file(args.data, args.images, args.prompt) if args.data else from_folder(args.images, args.prompt))
    questions = [each for each in given if isinstance(each, Question)]
    unusable = [each for each in given if isinstance(each, Unusable)]
    if not given:
        raise ValueError(f"{args.data or args.images} holds no {'question' if args.data else 'image'}")

    def leave_out(each: Unusable) -> None:
        tqdm.write(printable(f"left out: {each.message}"), file=sys.stderr)

    for each in unusable:
        leave_out(each)
    generation = {"max_new_tokens": args.max_new_tokens}
    if args.temperature > 0:
        generation |= {"do_sample": True, "temperature": args.temperature}
    opening = {"device": args.device, "dtype": args.dtype, "max_tiles": args.max_tiles, "template": args.template}
    made_by = {"model": str(source), **generation, "max_tiles": args.max_tiles, "template": args.template}
    with AnswerFile(args.out, made_by) as file:
        todo = [question for question in questions if not file.has(question)]
        job = Job(
            args.model, args.checkpoint, opening, generation, args.batch_size, args.processes, prepare=quiet_imports
        )
        with tqdm(total=len(todo), unit="question", desc="answering", disable=None) as bar:
            for question, answer in answer_all(job, todo) if todo else ():
                if isinstance(answer, Unusable):
                    unusable.append(answer)
                    leave_out(answer)
                else:
                    file.add(question, answer)
                bar.update()
        rows = [file.answers[question.id] for question in questions if question.id in file.answers]
        if args.csv:
            write_csv(args.csv, rows)
    earlier = len(questions) - len(todo)
    print(
        f"{len(rows):,} of {len(given):,} questions are answered in {args.out}"
        + (f" ({earlier:,} of them before)" if earlier else "")
        + (f"; {len(unusable):,} left out, named above" if unusable else "")
    )
    return 1 if unusable else 0


if __name__ == "__main__":
    sys.exit(main())
