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
    /save FILE    write the conversation to FILE.json
    /help         say this
    /quit         leave (so does the end of the input)

Boxes in an answer are drawn on the latest image and saved as NAME.boxes-1.png in the current folder. Control codes in
an answer are shown, not obeyed.

Exit status: 0; 1 when the model or an image can't be used; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory (an export or a base), training config or work directory")
    parser.add_argument("checkpoint", nargs="?", help="training checkpoint, with a config or a work directory")
    parser.add_argument("--image", action="append", default=[], metavar="PATH", help="image; may be given again")
    parser.add_argument("--question", help="ask this one question, print the answer and leave")
    parser.add_argument(
        "--max-tiles", type=int, help="most tiles per image, thumbnail not counted (default: the model's)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="above 0 samples (default 0: the likeliest token)"
    )
    parser.add_argument("--template", help="of a checkpoint that was trained with several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {args.max_new_tokens}: give at least 1")
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature}: give 0 or more")
    if args.max_tiles is not None and args.max_tiles < 1:
        parser.error(f"--max-tiles {args.max_tiles}: give at least 1")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    try:
        chat = open_chat(args)
        if args.question is not None:
            chat.ask(args.question)
            return 0
        return chat.run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print("error: out of memory; try a smaller --max-tiles, --dtype bfloat16 or --device cpu", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def open_chat(args: argparse.Namespace):
    """The conversation; wrong paths of model and images show before weights are read."""
    from xtuner_plugins.inference.opening import find_source, open_session

    source = find_source(args.model, args.checkpoint)
    from xtuner_plugins.datasets.images.media import image_size
    from xtuner_plugins.inference.chat import TerminalChat

    for path in args.image:
        image_size(path)
    from transformers.utils import logging

    logging.set_verbosity_error()
    opening = {"device": args.device, "dtype": args.dtype, "max_tiles": args.max_tiles, "template": args.template}
    options = {"max_new_tokens": args.max_new_tokens}
    if args.temperature > 0:
        options |= {"do_sample": True, "temperature": args.temperature}
    session = open_session(args.model, args.checkpoint, **opening)
    return TerminalChat(session, str(source), options, args.image)


if __name__ == "__main__":
    sys.exit(main())
