"""The checker's page, with cards of all records, which the server makes as the page asks for them.

It answers on this machine only, and only to requests that name this machine: a page of another site whose name was
pointed here (DNS rebinding) is refused. No file is served by its name; images are in the answers themselves.
"""

import socket
from typing import Annotated, Literal

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from ..datasets.audit.browse import MEASURES, MOST_CARDS, SORTS, Browser, Question

HOST = "127.0.0.1"
NUM_ENDS = 2 * len(MEASURES)  # lowest and highest value of each
NO_LIMITS = [""] * NUM_ENDS
HEADERS = {
    # The page's own script and styles, its own server, and images in answers; nothing of another site.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_app(page: str, browser: Browser) -> ASGIApp:
    """The server's application.

    Args:
        page: of `report.make_page`.
        browser: answers what it asks for.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)

    @app.get("/")
    def root() -> Response:
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/cards")
    def cards(
        after: Annotated[int, Query(ge=0, lt=1 << 40)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_CARDS)] = 24,
        text: Annotated[str, Query(max_length=1000)] = "",
        dataset: str = "",
        reason: str = "",
        language: str = "",
        sort: Literal[SORTS] = "",
        limits: Annotated[list[Literal[""] | int], Query(min_length=NUM_ENDS, max_length=NUM_ENDS)] = NO_LIMITS,
    ) -> Response:
        ends = [None if end == "" else end for end in limits]
        question = Question(text, dataset, reason, language, tuple(zip(ends[::2], ends[1::2], strict=True)), sort)
        return JSONResponse(browser.ask(question, after, limit), headers=HEADERS)

    return app


def serve(page: str, browser: Browser, listener: socket.socket) -> None:
    """Answer until Ctrl-C, which raises KeyboardInterrupt."""
    import uvicorn

    config = uvicorn.Config(create_app(page, browser), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
