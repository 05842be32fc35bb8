"""Servers that stores are read from in tests: one that can misbehave, and one that behaves as S3 does (moto)."""

import contextlib
import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bucket"
MOTO = """
import logging, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


class ObjectServer:
    """Objects over HTTP in this process: GET with ranges, HEAD.

    Attributes:
        objects: path, such as `bucket/a.jpg` -> bytes.
        mode: how it answers: 'ok', a status as text, or a key of `_MODES`; or path -> mode.
        asked: (method, path, range) of each request.
    """

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.mode = "ok"
        self.asked: list[tuple[str, str, str | None]] = []
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def mode_of(self, path: str) -> str:
        return self.mode(path) if callable(self.mode) else self.mode


@functools.cache
def shared_server() -> ObjectServer:
    """A server for all tests of this process, of objects under names of their own."""
    return ObjectServer()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ObjectServer

    def log_message(self, *args) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self.path and self.server_of.mode == "ok":
            return self._list()
        owner, path = self.server_of, unquote(urlsplit(self.path).path).lstrip("/")
        owner.asked.append((self.command, path, self.headers.get("Range")))
        mode = owner.mode_of(path)
        if mode == "slow":
            time.sleep(30)
        if mode == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if mode.isdigit():
            return self._answer(int(mode), b"<Error><Code>Trouble</Code></Error>")
        if mode == "html":
            return self._answer(200, b"<html><body>Please log in</body></html>")
        if mode == "garbage":
            self.close_connection = True
            self.wfile.write(bytes(range(256)))
            return
        data = owner.objects.get(path)
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        status, more, whole = 200, {}, data
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and mode not in ("no ranges", "no length"):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if first >= len(data):
                return self._answer(416, b"")
            data, status = data[first : last + 1], 206
            more["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{len(whole)}"
        length = {"short": max(len(data) // 2, 1), "long": len(data) + 100}.get(mode, len(data))
        sent = data[: len(data) // 2] if mode == "truncated" else data
        more |= {"ETag": f'"{hashlib.md5(whole).hexdigest()}"'} if mode != "no version" else {}
        if mode == "no length":
            more["Transfer-Encoding"] = "chunked"
            sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (sent, b""))
        self._answer(status, sent, length, more, ends=mode in ("truncated", "short", "long"))

    def _list(self) -> None:
        """What S3 lists (ListObjectsV2)."""
        url = urlsplit(self.path)
        bucket, query = url.path.strip("/"), parse_qs(url.query)
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        keys = [path.removeprefix(f"{bucket}/") for path in sorted(self.server_of.objects)]
        files, folders = [], {}
        for key in (key for key in keys if key.startswith(prefix)):
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                files.append(key)
        time_and_tag = "<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
        items = [f"<Contents><Key>{escape(key)}</Key><Size>1</Size>{time_and_tag}</Contents>" for key in files]
        items += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        head = f"<Name>{bucket}</Name><KeyCount>{len(items)}</KeyCount><IsTruncated>false</IsTruncated>"
        namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f'<ListBucketResult xmlns="{namespace}">{head}{"".join(items)}</ListBucketResult>'
        self._answer(200, body.encode(), more={"Content-Type": "application/xml"})

    def _answer(
        self, status: int, body: bytes, length: int | None = None, more: dict | None = None, ends=False
    ) -> None:
        self.send_response(status)
        if "Transfer-Encoding" not in (more or {}):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Accept-Ranges", "bytes")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        if ends:
            self.close_connection = True


@contextlib.contextmanager
def query_server(answer: Callable[[dict[str, list[str]]], bytes]) -> Iterator[str]:
    """URL of a server whose objects are named by queries, and have no tags and all the same time.

    Args:
        answer: query -> object.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            data = answer(parse_qs(urlsplit(self.path).query))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", "Mon, 23 Nov 2026 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def moto_server() -> Iterator[tuple[str, int]]:
    """(URL, process id) of a server of S3 in a process of its own, which is ended by its id."""
    env = {**os.environ, **CREDENTIALS}
    process = subprocess.Popen([sys.executable, "-c", MOTO], stdout=subprocess.PIPE, env=env, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def upload(endpoint: str, folder: Path, prefix: str = "") -> None:
    """Put the files of a folder into the bucket, which is made."""
    import fsspec

    fs = fsspec.filesystem("s3", endpoint_url=endpoint, skip_instance_cache=True)
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{BUCKET}/{prefix}{path.relative_to(folder)}", path.read_bytes())
