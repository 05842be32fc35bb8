"""Replies that no server should give: images or errors of ours come of them, in time, and never anything else."""

import io
import random
import socketserver
import threading

import pytest
from PIL import Image

from xtuner_plugins.datasets.errors import DataError
from xtuner_plugins.datasets.images.archives import open_images
from xtuner_plugins.datasets.images.media import image_size, load_image
from xtuner_plugins.datasets.records.opening import open_records
from xtuner_plugins.datasets.stores.store import StoreSettings

NUM_REPLIES = 100


def reply(draw: random.Random, image: bytes) -> bytes:
    """A broken or strange reply to a request; one in four is right."""
    if draw.random() < 0.25:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(image) + image
    status = draw.choice([200, 200, 200, 206, 206, 204, 301, 302, 304, 400, 403, 404, 416, 429, 500, 503, 999])
    body = draw.choice([image, b"", b"<html>no</html>", b"<Error><Code>X</Code>", draw.randbytes(draw.randrange(300))])
    if draw.random() < 0.3:
        body = body[: draw.randrange(len(body) + 1)]
    if draw.random() < 0.2 and body:
        place = draw.randrange(len(body))
        body = body[:place] + draw.randbytes(4) + body[place + 4 :]
    length = draw.choice([len(body)] * 4 + [0, len(body) + 7, len(body) // 2, -1, 10**18, "x"])
    lines = [f"HTTP/1.1 {status} Reply", f"Content-Length: {length}"]
    lines += draw.choice([[], ["Content-Range: bytes 0-1/2"], ["Content-Range: nonsense"], ["ETag: \xff\xfe"]])
    lines += draw.choice([[], ["Location: /"], ["Location: http://127.0.0.1:1/"], ["Transfer-Encoding: chunked"]])
    lines += draw.choice([[], [], ["Content-Encoding: gzip"], ["Connection: close"], ["Last-Modified: never"]])
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    return data if draw.random() > 0.05 else data[: draw.randrange(len(data))]


@pytest.fixture
def hostile():
    """URL of a server whose replies are drawn."""
    draw, image = random.Random(8), io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(image, "PNG")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(5)
            try:
                if self.request.recv(1 << 16):
                    self.request.sendall(reply(draw, image.getvalue()))
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["http", pytest.param("s3", marks=pytest.mark.release)])
def test_strange_replies(hostile, scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    args = {"endpoint_url": hostile, "anon": True} if scheme == "s3" else None
    stores = StoreSettings(args, timeout=1, cache_gib=0)
    root = "s3://bucket/images" if scheme == "s3" else f"{hostile}/images"
    folder = open_images(None, root, tmp_path, stores=stores)
    folder.store.timeout, seen = 0.1, {}
    for number in range(NUM_REPLIES):
        folder.store._start()
        try:
            image = folder.resolve(f"{number}.png")
            if number % 10 == 0:
                open_records(f"{root}/{number}.jsonl", tmp_path, StoreSettings(args, timeout=1))
            found = image_size(image) if number % 2 else load_image(image).size
        except DataError as error:
            found = error.reason
            assert len(str(error)) < 800
        seen[found] = seen.get(found, 0) + 1
    assert seen.get((40, 30), 0) > 3 and len(seen) >= 5, seen
