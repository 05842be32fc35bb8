"""An HTTP server with OpenAI's chat completions API, for models that no other engine runs and for the CPU."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from .api_engine import Engine, Event, Failed, Finished, Job, Piece
from .api_messages import ApiError, ChatRequest

BODY_SECONDS = 60  # for a client to send its request
T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up before its answer."""


def create_app(engine: Engine, name: str, api_keys: Sequence[str] = ()) -> FastAPI:
    """The server's application.

    Args:
        engine: Answers the requests; closed when the application stops.
        name: Of the model, as clients give it.
        api_keys: Keys of which a client must send one; none are asked for if empty.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    # Without the pages of documentation, which load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    def check_key(request: Request) -> None:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        sent = key.strip().encode() if kind.lower() == "bearer" else b""
        if api_keys and not any([hmac.compare_digest(sent, known.encode()) for known in api_keys]):
            raise ApiError(401, "no valid API key; send 'Authorization: Bearer KEY'", code="invalid_api_key")

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": len(engine.queue)}

    @app.get("/v1/models", dependencies=[Depends(check_key)])
    async def models() -> dict:
        model = {"id": name, "object": "model", "created": created, "owned_by": "local"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions", dependencies=[Depends(check_key)])
    async def complete(request: Request) -> Response:
        chat = ChatRequest.parse(await _read_body(request, engine.limits.body_bytes))
        if chat.model != name:
            raise ApiError(404, f"model {chat.model!r} is not here; this is {name!r}", code="model_not_found")
        client = request.headers.get("authorization") or (request.client.host if request.client else "")
        answer = _Answer(engine, chat, client)
        try:
            if chat.stream:
                first = await _unless_gone(request, anext(answer.events))
                if isinstance(first, Failed):
                    raise first.error
                return StreamingResponse(answer.stream(), media_type="text/event-stream")
            return JSONResponse(await _unless_gone(request, answer.whole()))
        except ClientGone:
            await answer.events.aclose()
            return Response(status_code=499)  # nobody reads it

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        said = (
            f"{request.method} {request.url.path}: {error.detail}; there are /health, /v1/models, /v1/chat/completions"
        )
        return JSONResponse(ApiError(error.status_code, said).body, error.status_code, error.headers)

    return app


class _Answer:
    """A request on its way through the engine, seen from the event loop."""

    def __init__(self, engine: Engine, request: ChatRequest, client: str):
        self.request, self.engine = request, engine
        self.about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.job = Job(request, client, lambda event: loop.call_soon_threadsafe(self._queue.put_nowait, event))
        engine.submit(self.job)
        self.events = self._events()

    async def _events(self) -> AsyncIterator[Event]:
        """The engine's events; leaving early cancels the job."""
        try:
            while True:
                event = await self._queue.get()
                yield event
                if isinstance(event, (Finished, Failed)):
                    return
        finally:
            self.engine.cancel(self.job)

    async def whole(self) -> dict:
        """The answer in one object.

        Raises:
            ApiError: There is none.
        """
        async for event in self.events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                message = {"role": "assistant", "content": event.text}
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": event.reason}
                return {**self.about, "object": "chat.completion", "choices": [choice], "usage": _usage(event)}
        raise AssertionError("an answer ends with Finished or Failed")

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events, after its first event was taken."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            async for event in self.events:
                if isinstance(event, Piece):
                    yield self._chunk({"content": event.text})
                elif isinstance(event, Failed):
                    yield _sse(event.error.body)
                elif isinstance(event, Finished):
                    yield self._chunk({}, event.reason)
                    if self.request.stream_options.include_usage:
                        yield self._sse_chunk(choices=[], usage=_usage(event))
            yield "data: [DONE]\n\n"
        finally:
            self.engine.cancel(self.job)

    def _chunk(self, delta: dict, reason: str | None = None) -> str:
        return self._sse_chunk(choices=[{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])

    def _sse_chunk(self, **content: Any) -> str:
        return _sse({**self.about, "object": "chat.completion.chunk", **content})


def _sse(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(event: Finished) -> dict[str, int]:
    prompt, answer = event.prompt_tokens, event.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def _read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: It isn't JSON, is larger than `limit` bytes, or takes too long to come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another site may not send from a browser
        raise ApiError(415, f"content type {kind!r}; send application/json")
    too_large = ApiError(
        413, f"the request is larger than {limit / 2**20:g} MiB; send smaller images", code="too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:  # noqa: UP041  another class in Python 3.10
        raise ApiError(408, f"the request didn't come within {BODY_SECONDS} seconds") from None


async def _unless_gone(request: Request, wanted: Awaitable[T]) -> T:
    """What is wanted, unless the client hangs up first.

    Raises:
        ClientGone: It hung up; what was wanted is cancelled.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(hang_up())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
