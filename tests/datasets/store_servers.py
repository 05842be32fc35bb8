"""A server of objects over HTTP that answers as S3 does, or misbehaves."""

import contextlib
import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class ObjectServer:
    """Objects in this process: GET with ranges, HEAD.

    Attributes:
        objects: path, such as `bucket/a.jpg`, or with a query -> bytes.
        mode: how it answers: 'ok', a status as text, or one of the words in `_Handler.do_GET`; or path -> mode.
        asked: (method, path, range) of each request.
    """

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.mode: str | Callable[[str], str] = "ok"
        self.asked: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@functools.cache
def shared_server() -> ObjectServer:
    """A server for all tests of this process, of objects under names of their own."""
    return ObjectServer()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ObjectServer

    def log_message(self, *args) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        mode = self.owner.mode
        if "list-type" in self.path and mode == "ok":
            return self._list()
        path = unquote(self.path).lstrip("/")
        self.owner.asked.append((self.command, path, self.headers.get("Range")))
        mode = mode(path) if callable(mode) else mode
        self.close_connection = mode in ("reset", "garbage", "truncated")
        if mode == "slow":
            time.sleep(30)
        if mode == "reset":
            return self.connection.close()
        if mode == "garbage":
            return self.wfile.write(bytes(range(256)))
        data = self.owner.objects.get(path)
        if mode.isdigit() or data is None:
            return self._answer(int(mode) if mode.isdigit() else 404, b"<Error><Code>NoSuchKey</Code></Error>")
        status, more, whole = 200, {}, data
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and mode != "no ranges":
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            data, status = data[first : last + 1], 206
            more["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{len(whole)}"
        more |= {"ETag": f'"{hashlib.md5(whole).hexdigest()}"'} if mode != "no version" else {}
        self._answer(status, data[: len(data) // 2] if mode == "truncated" else data, len(data), more)

    def _list(self) -> None:
        """What S3 lists (ListObjectsV2) below a prefix."""
        url = urlsplit(self.path)
        bucket, prefix = url.path.strip("/"), parse_qs(url.query).get("prefix", [""])[0]
        keys = [path.removeprefix(f"{bucket}/") for path in sorted(self.owner.objects)]
        rest = "<Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
        items = [f"<Contents><Key>{key}</Key>{rest}</Contents>" for key in keys if key.startswith(prefix)]
        head = f"<Name>{bucket}</Name><KeyCount>{len(items)}</KeyCount><IsTruncated>false</IsTruncated>"
        namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f'<ListBucketResult xmlns="{namespace}">{head}{"".join(items)}</ListBucketResult>'
        self._answer(200, body.encode(), more={"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, length: int | None = None, more=()) -> None:
        self.send_response(status)
        headers = {"Content-Length": len(body) if length is None else length, "Accept-Ranges": "bytes", **dict(more)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
