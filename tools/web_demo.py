"""A web page to talk with a model about images and videos.

    python tools/web_demo.py exports/mine
    python tools/web_demo.py work_dirs/finetune_lora                              # its newest checkpoint

The page is at http://127.0.0.1:7860, for this machine alone unless --host says otherwise. Programs ask it, too, by
gradio_client or curl (docs/using.md). Nothing is fetched from the internet and nothing is reported.

Exit status: 0 after Ctrl-C; 2 when the model, the port or the command line can't be used.
"""

import argparse
import errno
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed

from xtuner_plugins.cli.shared import add_model, at_least, command, make_parser, open_model  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1); 0.0.0.0 for all")
    parser.add_argument("--port", type=at_least(1, most=65535), default=7860, help="default 7860")
    parser.add_argument("--password-file", metavar="FILE", help="its first line is the password; any user name will do")
    parser.add_argument("--max-upload-mb", type=at_least(1, float), default=50, help="largest file (default 50)")
    return parser.parse_args(argv)


def serve(args: argparse.Namespace) -> None:
    """Opens the model and serves the page until Ctrl-C."""
    password, host = None, f"[{args.host.strip('[]')}]" if ":" in args.host else args.host  # as URLs name IPv6
    if args.password_file:
        password = Path(args.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
        if not password:
            told = "its first line is empty; write the password there"
            raise ValueError(f"--password-file {args.password_file}: {told}")
    elif host not in ("127.0.0.1", "localhost", "[::1]"):
        told = "warning: other machines can use the page, and it asks for no password; see --password-file"
        print(told, file=sys.stderr)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:  # before the weights are read
        socket.create_server((host.strip("[]"), args.port), family=family).close()
    except OSError as error:
        is_taken, other = error.errno == errno.EADDRINUSE, f"--host {host}: {error.strerror}"
        raise OSError(f"port {args.port} is in use; give another --port" if is_taken else other) from None
    session = open_model(args)
    from xtuner_plugins.chat_page import launch

    options = {"password": password, "max_upload_mb": args.max_upload_mb}
    launch(session, Path(args.model).resolve().name, host=host, port=args.port, **options).block_thread()


main = command(parse_args, serve)

if __name__ == "__main__":
    sys.exit(main())
