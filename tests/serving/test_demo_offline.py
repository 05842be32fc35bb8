import asyncio

from xtuner_plugins.serving.demo_offline import OwnFilesOnly

PAGE = b"""<head><link rel="preconnect" href="https://fonts.googleapis.com" />
<link rel="stylesheet" href="./assets/index.css"><meta name="viewport" content="width=device-width">
<script src="https://cdnjs.cloudflare.com/a.js" async></script>
<script type="module" src="./assets/index.js"></script></head><a href="https://example.org">text</a>"""


def answer(path):
    """What a client gets: status, headers, body."""

    async def app(scope, receive, send):
        length = (b"Content-Length", str(len(PAGE)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length, (b"x-a", b"b")]})
        await send({"type": "http.response.body", "body": PAGE[:90], "more_body": True})
        await send({"type": "http.response.body", "body": PAGE[90:]})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(OwnFilesOnly(app)({"type": "http", "path": path}, None, send))
    return sent


def test_the_page_names_no_other_site():
    start, body = answer("/")
    assert b"googleapis" not in body["body"] and b"cdnjs" not in body["body"]
    for own in (b"./assets/index.css", b"./assets/index.js", b"viewport", b'<a href="https://example.org">'):
        assert own in body["body"]
    assert dict(start["headers"]) == {b"x-a": b"b", b"content-length": str(len(body["body"])).encode()}


def test_other_answers_pass_as_they_are():
    assert b"".join(message.get("body", b"") for message in answer("/file")) == PAGE
