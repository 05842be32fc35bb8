"""Talks with a model in the terminal: an export, a base, or a training checkpoint.

    python tools/chat.py exports/mine --image photo.jpg
    python tools/chat.py exports/mine --image photo.jpg --question "What is written on the sign?"
    python tools/chat.py finetune_lora work_dirs/finetune_lora/iter_1000.pth      # without exporting it
    python tools/chat.py work_dirs/finetune_lora                                  # its newest checkpoint

Without --question it converses: a line is a question, Ctrl-C stops an answer, and these are commands:

    /image PATH   show an image with the next question; several times for several images
    /clear        forget the conversation
    /system TEXT  begin a new conversation with this system prompt
    /tiles N      cut images into at most N tiles from now on
    /help         say this
    /quit         leave (so does the end of the input)

Control codes in an answer are shown, not obeyed. tools/web_demo.py draws boxes.

Exit status: 0; 1 when a line of a piped conversation failed; 2 when the model, an image or the command line can't be
used.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import add_answers, add_model, at_least, command, make_parser, open_model  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_model(parser)
    parser.add_argument("--image", action="append", default=[], metavar="PATH", help="image; may be given again")
    parser.add_argument("--question", help="ask this one question, print the answer and leave")
    add_answers(parser)
    parser.add_argument("--temperature", type=at_least(0, float), default=0.0, help="above 0 samples (default 0)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    session = open_model(args, args.image)
    from xtuner_plugins.inference.chat import TerminalChat

    options = {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {}
    chat = TerminalChat(session, {"max_new_tokens": args.max_new_tokens, **options}, args.image)
    if args.question is None:
        return chat.run()
    chat.ask(args.question)
    return 0


main = command(parse_args, run, smaller="--max-tiles, --dtype bfloat16 or --device cpu")

if __name__ == "__main__":
    sys.exit(main())
