"""Serves an exported model (or a base) with OpenAI's chat completions API.

    python tools/serve.py exports/mine
    curl http://127.0.0.1:8000/v1/models

For models that no engine runs (CLIP or SigLIP in an official directory) and for the CPU: one answer at a time, others
wait. Ctrl-C stops it.

Exit status: 0 after Ctrl-C; 1 when the model can't be used or the port is taken; 2 for a wrong command line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that isn't installed


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text}: give 0 to 65535")
    return value


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="official InternVL directory: an export or a base")
    parser.add_argument("--name", help="the model's name for clients (default: that of its directory)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=port, default=8000, help="port (default 8000; 0 takes a free one)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one per line; clients must send one")
    parser.add_argument(
        "--max-tiles", type=positive, help="most tiles per image, without thumbnail (default: the model's)"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=2048, help="longest answer (default 2048)")
    parser.add_argument("--max-body-mib", type=positive, default=32, help="largest request in MiB (default 32)")
    parser.add_argument("--max-images", type=positive, default=16, help="most images of a request (default 16)")
    parser.add_argument("--max-megapixels", type=positive, default=50, help="largest image (default 50)")
    parser.add_argument("--max-queue", type=positive, default=64, help="most requests at a time (default 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        serve(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def serve(args: argparse.Namespace) -> None:
    keys = read_keys(args.api_key_file)
    from xtuner_plugins.processes import quiet_imports

    quiet_imports()
    from xtuner_plugins.checkpoints.formats import open_config
    from xtuner_plugins.serving.listening import listen

    open_config(args.model)  # a wrong path or port shows before transformers is imported
    with listen(args.host, args.port) as listener:
        import uvicorn
        from transformers.utils import logging

        from xtuner_plugins.inference.session import ChatSession
        from xtuner_plugins.serving.api import create_app
        from xtuner_plugins.serving.api_engine import Engine
        from xtuner_plugins.serving.api_messages import Limits

        logging.set_verbosity_error()
        limits = Limits(
            args.max_body_mib << 20, args.max_images, args.max_megapixels * 10**6, args.max_new_tokens, args.max_queue
        )
        session = ChatSession.from_pretrained(
            args.model, device=args.device, dtype=args.dtype, max_tiles=args.max_tiles
        )
        name = args.name or Path(args.model).resolve().name
        app = create_app(Engine(session, limits), name, keys)
        if not keys and not args.host.startswith("127.") and args.host not in ("localhost", "::1"):
            print(f"warning: whoever reaches {args.host} can use this model; see --api-key-file", file=sys.stderr)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"{name} answers at http://{host}:{listener.getsockname()[1]}/v1 (Ctrl-C stops)", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])


def read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{path} holds no key; write one per line")
    return keys


if __name__ == "__main__":
    sys.exit(main())
