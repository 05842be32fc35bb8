"""A web page to talk with a model about images and videos, or with two models side by side.

    python tools/web_demo.py exports/mine
    python tools/web_demo.py exports/mine exports/older
    python tools/web_demo.py work_dirs/finetune_lora                              # its newest checkpoint
    python tools/web_demo.py --server http://127.0.0.1:8000/v1 --model mine

The page is at http://127.0.0.1:7860, for this machine alone unless --host says otherwise. With --server it is a front
to an OpenAI-style server; the environment variable OPENAI_API_KEY holds the key if the server wants one. Nothing is
fetched from the internet and nothing is reported.

Exit status: 0 after Ctrl-C; 1 when a model or the port can't be used; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="export, base or work directory; two: side by side")
    parser.add_argument("--server", metavar="URL", help="OpenAI-style server, up to /v1")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="model of --server; up to twice")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1); 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--password-file", metavar="FILE", help="its first line is the password; any user name will do")
    parser.add_argument("--max-upload-mb", type=float, default=50, help="largest file (default 50)")
    parser.add_argument("--max-megapixels", type=float, default=50, help="largest image or frame (default 50)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    args = parser.parse_args(argv)
    if bool(args.server) != bool(args.model):
        parser.error("--server and --model NAME go together")
    if not 1 <= len(args.models) + len(args.model) <= 2:
        parser.error(f"{len(args.models) + len(args.model)} models: give one or two")
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: give 1 to 65535")
    if args.max_upload_mb <= 0 or args.max_megapixels <= 0:
        parser.error("--max-upload-mb and --max-megapixels: give more than 0")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        return serve(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def serve(args: argparse.Namespace) -> int:
    """Checks what is cheap to check, loads the models, and serves until Ctrl-C."""
    from xtuner_plugins.inference.opening import find_source, open_session
    from xtuner_plugins.processes import quiet_imports

    for path in args.models:
        find_source(path)  # a wrong path shows before transformers is imported
    password = read_password(args.password_file)
    quiet_imports()
    from transformers.utils import logging

    from xtuner_plugins.serving.demo import check_port, launch
    from xtuner_plugins.serving.demo_media import Limits
    from xtuner_plugins.serving.demo_models import LocalModel, ServerModel

    logging.set_verbosity_error()
    check_port(args.host, args.port)
    if args.host not in ("127.0.0.1", "localhost", "::1") and password is None:
        print(
            "warning: other machines can use the page, and it asks for no password; see --password-file",
            file=sys.stderr,
        )
    models = [
        LocalModel(open_session(path, device=args.device, dtype=args.dtype), Path(path).resolve().name)
        for path in args.models
    ]
    models += [ServerModel(args.server, name) for name in args.model]
    limits = Limits(max_bytes=int(args.max_upload_mb * 2**20), max_pixels=int(args.max_megapixels * 1e6))
    launch(models, limits, host=args.host, port=args.port, password=password)
    return 0


def read_password(path: str | None) -> str | None:
    """The first line of the file; None without a file."""
    if path is None:
        return None
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise ValueError(f"--password-file {path}: its first line is empty; write the password there")
    return lines[0].strip()


if __name__ == "__main__":
    sys.exit(main())
