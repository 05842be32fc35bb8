"""Talks with an exported model (or a base), in the terminal.

    python tools/chat.py exports/mine --image photo.jpg
    python tools/chat.py exports/mine --image photo.jpg --question "What is written on the sign?"

Without --question it converses: a line is a question, and these are commands:

    /image PATH   show an image with the next question; several times for several images
    /reset        forget the conversation
    /help         say this
    /quit         leave (so does the end of the input)

Exit status: 0; 1 when the model or an image can't be used; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

COMMANDS = "/image PATH, /reset, /help, /quit"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="official InternVL directory: an export or a base")
    parser.add_argument("--image", action="append", default=[], metavar="PATH", help="image; may be given again")
    parser.add_argument("--question", help="ask this one question, print the answer and leave")
    parser.add_argument(
        "--max-tiles", type=int, help="most tiles per image, thumbnail not counted (default: the model's)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="above 0 samples (default 0: the likeliest token)"
    )
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
    from xtuner_plugins.cli.terminal import quiet_imports

    quiet_imports()
    try:
        conversation = Conversation(args)
        if args.question is not None:
            conversation.ask(args.question)
            return 0
        return conversation.run()
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


class Conversation:
    """What is typed, on one side, and the session, on the other."""

    def __init__(self, args: argparse.Namespace):
        from xtuner_plugins.checkpoints.formats import open_config
        from xtuner_plugins.datasets.images.media import load_image

        open_config(args.model)  # a wrong path shows before transformers is imported
        self.load_image = load_image
        self.images = [load_image(path) for path in args.image]
        from transformers.utils import logging

        from xtuner_plugins.inference.session import ChatSession

        logging.set_verbosity_error()
        self.session = ChatSession.from_pretrained(
            args.model, device=args.device, dtype=args.dtype, max_tiles=args.max_tiles
        )
        self.options = {"max_new_tokens": args.max_new_tokens}
        if args.temperature > 0:
            self.options |= {"do_sample": True, "temperature": args.temperature}

    def ask(self, question: str) -> None:
        """Prints the answer while it comes."""
        begun = False

        def show(piece: str) -> None:
            nonlocal begun
            piece = piece if begun else piece.lstrip()
            begun = begun or bool(piece)
            print(piece, end="", flush=True)

        self.session.ask(question, self.images, stream=show, **self.options)
        print(flush=True)
        self.images = []

    def command(self, line: str) -> bool:
        """Carries out a `/command`; False when it was the last one."""
        name, _, rest = line.partition(" ")
        rest = rest.strip().strip("\"'")
        if name == "/quit":
            return False
        if name == "/reset":
            self.session.reset()
            self.images = []
            print("(a new conversation)")
        elif name == "/image":
            if not rest:
                raise ValueError("/image needs the path of an image")
            self.images.append(self.load_image(Path(rest).expanduser()))
            width, height = self.images[-1].size
            print(f"({rest}, {width} x {height}, goes with the next question)")
        elif name == "/help":
            print(COMMANDS)
        else:
            raise ValueError(f"no command {name}; there are {COMMANDS}")
        return True

    def run(self) -> int:
        """Reads lines until /quit or the end; without a terminal, an error on the way shows in the status."""
        interactive = sys.stdin.isatty()
        status = 0
        if interactive:
            print(f"Ask, or: {COMMANDS}")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return status
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return status
                elif line:
                    self.ask(line)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                status = status if interactive else 1
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print("\n(interrupted; the question is forgotten)")


if __name__ == "__main__":
    sys.exit(main())
