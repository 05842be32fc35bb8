"""A server of objects over HTTP that answers as S3 does, or misbehaves."""

import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

BUCKET = "bucket"


class ObjectServer(ThreadingHTTPServer):
    """Objects in this process: GET with ranges, HEAD."""

    daemon_threads = True
    handle_error = staticmethod(lambda *args: None)  # nothing is said of a client that has gone

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}  # by path, such as `bucket/a.jpg`, or with a query
        self.mode: str | Callable[[str], str] = "ok"  # or a status, or a word of `_Handler.do_GET`; or path -> mode
        self.asked: list[tuple[str, str, str | None]] = []  # method, path and range of each request
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@functools.cache
def shared_server() -> ObjectServer:
    """A server for all tests of this process, of objects under names of their own."""
    return ObjectServer()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = staticmethod(lambda *args: None)

    def do_GET(self) -> None:
        path, mode, span = unquote(self.path).lstrip("/"), self.server.mode, self.headers.get("Range")
        self.server.asked.append((self.command, path, span))
        mode = mode(path) if callable(mode) else mode
        self.close_connection = mode in ("reset", "garbage", "truncated")
        if mode == "slow":
            time.sleep(30)
        if mode == "reset":
            return self.connection.close()
        if mode == "garbage":
            return self.wfile.write(bytes(range(256)))
        data = self.server.objects.get(path)
        if mode.isdigit() or data is None:
            return self._answer(int(mode) if mode.isdigit() else 404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {} if mode == "no version" else {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        if span and mode != "no ranges":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()
            part = data[int(first) : int(last or len(data)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self._answer(206, part, **headers)
        self._answer(200, data[: len(data) // 2] if mode == "truncated" else data, len(data), **headers)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, length: int | None = None, **headers) -> None:
        self.send_response(status)
        headers |= {"Content-Length": len(body) if length is None else length, "Accept-Ranges": "bytes"}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
