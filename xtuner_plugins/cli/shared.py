"""What the tools share: the options that open a model, checks of numbers, and one line for what went wrong."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import told
from ..files import keep_inputs


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the tool."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def at_least(low: float, kind: type = int, most: float = math.inf) -> Callable[[str], Any]:
    """An argparse type: finite numbers from `low` to `most`."""

    def number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= most or value == math.inf:
            told = f"{low} to {most}" if most < math.inf else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text}: give {told}")
        return value

    number.__name__ = kind.__name__  # what argparse says of a word that is no number
    return number


def add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Adds the model and how it is opened; `opening_of` reads them.

    Args:
        parser: Of a tool.
        optional: Whether the tool also runs without a model.
    """
    parser.add_argument("model", nargs="?" if optional else None, help="model directory, config or work directory")
    parser.add_argument("checkpoint", nargs="?", help="training checkpoint, with a config or a work directory")
    parser.add_argument("--template", help="of a checkpoint that was trained with several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")


def add_answers(parser: argparse.ArgumentParser, longest: int | None = 512, told: str = "512") -> None:
    """Adds the limits of tiles and of answers.

    Args:
        parser: Of a tool.
        longest: Tokens that an answer has at most; None leaves it to the tool.
        told: What the help says of that default.
    """
    tiles = "most tiles per image, thumbnail not counted (default: the model's)"
    parser.add_argument("--max-tiles", type=at_least(1), metavar="N", help=tiles)
    tokens = f"longest answer (default: {told})"
    parser.add_argument("--max-new-tokens", type=at_least(1), default=longest, metavar="N", help=tokens)


def add_weights(parser: argparse.ArgumentParser, dtype: str | None = None) -> None:
    """Adds how weights are written.

    Args:
        parser: Of a tool.
        dtype: In which it writes; None keeps the dtype that weights are stored in.
    """
    kinds = ["bfloat16", "float16", "float32"]
    told = f"of the stored weights (default: {dtype or 'as they are stored'})"
    parser.add_argument("--dtype", choices=kinds, default=dtype, help=told)
    parser.add_argument("--force", action="store_true", help="replace an existing output directory")


def prepare_outputs(paths: Iterable[str | None], inputs: Iterable[str]) -> None:
    """Makes the files and folders of results, so that an hour's work doesn't end with an error.

    Raises:
        SettingError: One of them is an input, too; then none is made.
    """
    outputs, inputs = [path for path in paths if path], list(inputs)
    for path in outputs:
        keep_inputs(path, inputs)
    for path in outputs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path, "a").close()


def opening_of(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `open_session`."""
    names = ("device", "dtype", "template", "max_tiles")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def open_model(args: argparse.Namespace, images: Sequence[str] = ()) -> Any:
    """The `ChatSession` of the arguments.

    Args:
        args: As `add_model` reads them.
        images: Paths that the tool is going to show the model.

    Raises:
        CheckpointError: There is no such model, or it can't be opened.
        MediaError: An image can't be read; it is said before weights are read, as a wrong path of the model is.
    """
    from ..processes import quiet_imports

    quiet_imports()
    from ..inference.opening import find_source, open_session

    find_source(args.model, args.checkpoint)  # a wrong path shows before anything large is imported
    from transformers.utils import logging

    from ..datasets.images.media import image_size

    for path in images:
        image_size(path)
    logging.set_verbosity_error()
    return open_session(args.model, args.checkpoint, **opening_of(args))


def finish(work: Callable[[], int | None], *, smaller: str = "--max-tiles", so_far: str = "") -> int:
    """Runs a tool; returns its exit status, 2 for what can't be done, which is one line `error: ...`.

    Args:
        work: Returns the exit status; None is 0, 1 tells of what was left out or found.
        smaller: What to lower when memory runs out.
        so_far: What is left of the work when it ends early.
    """
    sys.modules.setdefault("kernels", None)  # libraries would fetch code from the hub with it (see `quiet_imports`)
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        lines = told(error).splitlines()
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        lines = [f"out of memory; try a smaller {smaller}{so_far}"]
    except KeyboardInterrupt:
        print(f"\nstopped{so_far}", file=sys.stderr)
        return 130
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2


def command(
    parse_args: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], int | None],
    smaller: str = "--max-tiles",
) -> Callable[..., int]:
    """The `main` of a tool: runs what was parsed; arguments as of `finish`."""

    def main(argv: Sequence[str] | None = None) -> int:
        args = parse_args(argv)
        return finish(lambda: run(args), smaller=smaller)

    return main
