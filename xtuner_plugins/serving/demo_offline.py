"""Keeps the web page from asking other sites for anything: Gradio's page names scripts and fonts of two."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

# A tag that would load from elsewhere. What the page needs, Gradio serves itself.
ELSEWHERE = re.compile(rb"<(?:script|link|meta)\b[^>]*[\"']https?://[^>]*>(?:\s*</script>)?")

Message = MutableMapping[str, Any]


class OwnFilesOnly:
    """ASGI middleware: the page at `/` without tags that name other sites; every other answer passes as it is.

    Args:
        app: What answers.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """As ASGI says."""
        if scope["type"] != "http" or scope.get("path") != "/":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def collect(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            text = ELSEWHERE.sub(b"", body)
            headers = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(text)).encode())]})
            await send({"type": "http.response.body", "body": text})

        await self.app(scope, receive, collect)
