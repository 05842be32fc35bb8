"""The web page: a conversation with one model, or with two side by side.

The page needs nothing from the internet: fonts and scripts come from the installed package, and nothing is reported.
"""

# Annotations are evaluated here: Gradio looks for `gr.Request` among them, and `gr` is local to a function.
import hmac
import os
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from starlette.middleware import Middleware

from ..datasets.errors import MediaError
from ..inference.drawing import answer_boxes, draw_boxes
from .demo_media import Limits, Medium, read_media
from .demo_models import DemoModel, ModelError, Settings, Turn, stream_answers
from .demo_offline import OwnFilesOnly
from .demo_texts import PREFIX, language_texts, message

MAX_WAITING = 64  # visitors in the queue; a further one is told that it is full
KEPT_SECONDS = 6 * 3600  # how long uploads and conversations are kept
MAX_SESSIONS = 200
DRAWN_SIDE = 1280  # pixels of the longer side of an image with boxes
# Gradio shows a button on images that would upload them to a public site. Its name depends on the browser's language,
# its drawing doesn't.
SHARE_DRAWING = "M23,20a5,5"
NO_SHARING = f'button:has(path[d^="{SHARE_DRAWING}"]) {{display: none !important}}'


@dataclass(frozen=True)
class Exchange:
    """A question of a visitor with the answers of all models.

    Attributes:
        text: As typed.
        files: Paths of the uploads.
        answers: One per model; None while it is open.
    """

    text: str
    files: tuple[str, ...] = ()
    answers: tuple[str, ...] | None = None


class Page:
    """What happens on the page, without its looks.

    Args:
        models: One or two.
        limits: Of uploads.
    """

    def __init__(self, models: Sequence[DemoModel], limits: Limits):
        self.models = models
        self.limits = limits
        self._running: dict[str, threading.Event] = {}

    def stop(self, session: str) -> None:
        """Ends the visitor's answer that is being written; what there is of it stays."""
        if event := self._running.get(session):
            event.set()

    def ask(
        self,
        text: str,
        files: Sequence[str],
        past: Sequence[Exchange],
        settings: Settings,
        num_frames: int,
        session: str,
    ) -> Iterator[tuple[list[Exchange], list[list[Medium]]]]:
        """Yields the conversation and its media when the models have begun, and whenever an answer grows.

        Raises:
            MediaError: A file can't be used.
            ModelError: A model can't answer.
        """
        exchanges = [*past, Exchange(text, tuple(files))]
        media = [read_media(exchange.files, self.limits, num_frames) for exchange in exchanges]
        conversations = [
            [
                Turn(exchange.text, own, exchange.answers[index] if exchange.answers else None)
                for exchange, own in zip(exchanges, media, strict=True)
            ]
            for index in range(len(self.models))
        ]
        stop = self._running[session] = threading.Event()
        try:
            stream = stream_answers(self.models, conversations, settings, stop)
            next(stream)
            yield exchanges, media  # the page shows the question and its tiles while the models work
            for answers in stream:
                exchanges[-1] = replace(exchanges[-1], answers=tuple(answers))
                yield exchanges, media
        finally:
            stop.set()
            if self._running.get(session) is stop:
                del self._running[session]

    def look(self, media: Sequence[Medium], max_tiles: int | None, language: str) -> tuple[list, str]:
        """Tiles of the last question as `(image, caption)`, of the first model that tells; a line on each model."""
        gallery, lines = [], []
        for model in self.models:
            if model.max_tiles is None:
                lines.append(message("server_tiles", language, name=model.name))
                continue
            tiles = model.tiles(media, max_tiles)
            if not tiles:
                continue
            files = _by_file(media, tiles)
            total = sum(len(own) for _, own in files)
            grids = ", ".join(f"{name}: {len(own)}" for name, own in files)
            tokens, side = total * model.tokens_per_tile, tiles[0].shape[-1]
            lines.append(
                message("tiles", language, name=model.name, tiles=total, side=side, tokens=tokens, grids=f"({grids})")
            )
            gallery = gallery or [
                (Image.fromarray(tile.permute(1, 2, 0).numpy()), f"{number} {name}")
                for name, own in files
                for number, tile in enumerate(own, 1)
            ]
        return gallery, "\n\n".join(lines)


def _by_file(media: Sequence[Medium], tiles: Sequence[torch.Tensor]) -> list[tuple[str, list[torch.Tensor]]]:
    """Each file's name and tiles; `tiles` has an entry per image or frame."""
    left = iter(tiles)
    return [(medium.name, [tile for _ in medium.images for tile in next(left)]) for medium in media]


def chat_messages(exchanges: Sequence[Exchange], index: int) -> list[dict]:
    """The conversation with one model as Gradio's chat shows it."""
    messages: list[dict] = []
    for exchange in exchanges:
        messages += [{"role": "user", "content": {"path": path}} for path in exchange.files]
        messages.append({"role": "user", "content": exchange.text})
        if exchange.answers is not None:
            messages.append({"role": "assistant", "content": exchange.answers[index]})
    return messages


def boxes_shown(media: Sequence[Sequence[Medium]], boxes: Sequence[tuple[float, ...]]) -> Image.Image | None:
    """The last image of the conversation with these boxes drawn; None without either."""
    images = [medium.images[0] for own in media for medium in own if not medium.is_video]
    if not images or not boxes:
        return None
    small = images[-1].copy()
    small.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
    return draw_boxes(small, boxes)


def build_page(page: Page):
    """The Gradio page."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio as gr

    i18n = gr.I18n(**language_texts())

    def word(key: str):
        return i18n(PREFIX + key)

    defaults = [model.max_tiles for model in page.models if model.max_tiles is not None]
    with gr.Blocks(
        title="XTuner Plugins", analytics_enabled=False, fill_width=True, delete_cache=(600, KEPT_SECONDS)
    ) as blocks:
        gr.Markdown(word("title"), elem_id="title")
        exchanges = gr.State([], time_to_live=KEPT_SECONDS)
        with gr.Row():
            chats = [
                gr.Chatbot(
                    label=model.name,
                    height=420,
                    render_markdown=False,  # shows what the model wrote, and loads no image that it names
                    buttons=["copy"],
                    feedback_options=None,
                    elem_id=f"chat-{number}",
                )
                for number, model in enumerate(page.models)
            ]
        box = gr.MultimodalTextbox(
            show_label=False,
            placeholder=word("ask"),
            file_count="multiple",
            max_plain_text_length=100_000,
            elem_id="ask",
        )
        with gr.Row():
            stop, retry, clear = (gr.Button(word(name), elem_id=name) for name in ("stop", "retry", "clear"))
        seen = gr.Markdown(elem_id="seen")
        tiles = gr.Gallery(
            label=word("seen"), columns=8, height=220, format="png", interactive=False, visible=bool(defaults)
        )
        with gr.Row():
            drawn = [
                gr.Image(
                    label=word("boxes"),
                    visible=False,
                    format="png",
                    type="pil",
                    height=320,
                    interactive=False,
                    elem_id=f"boxes-{number}",
                )
                for number in range(len(page.models))
            ]
        with gr.Accordion(word("settings"), open=False):
            system = gr.Textbox(label=word("system"), placeholder=word("system_hint"), lines=2)
            temperature = gr.Slider(0, 2, 0, step=0.1, label=word("temperature"))
            max_tiles = gr.Slider(
                1, max(12, *defaults, 1), max(defaults, default=1), step=1,
                label=word("max_tiles"), visible=bool(defaults),
            )  # fmt: skip
            max_new_tokens = gr.Slider(1, 4096, 512, step=1, label=word("max_new_tokens"))
            num_frames = gr.Slider(1, 32, 8, step=1, label=word("num_frames"))

        outputs = [box, exchanges, *chats, seen, tiles, *drawn]

        def answer(text, files, past, system, temperature, max_tiles, max_new_tokens, num_frames, request):
            """Yields values of `outputs`; on an error the question goes back into its field."""
            language = request.headers.get("accept-language", "")
            settings = Settings(system, temperature, int(max_tiles) if defaults else None, int(max_new_tokens))
            session = request.session_hash or str(id(request))
            empty = {"text": "", "files": []}
            looks: tuple[Any, Any] | None = None
            boxes: list[Any] = [[] for _ in drawn]
            try:
                for current, media in page.ask(text, files, past, settings, int(num_frames), session):
                    if looks is None:
                        looks = page.look(media[-1], settings.max_tiles, language)
                        values = [empty, *([gr.skip()] if current[-1].answers is None else [current])]
                        shown = [chat_messages(current, index) for index in range(len(chats))]
                        yield [*values, *shown, looks[1], looks[0], *[gr.update(visible=False)] * len(drawn)]
                        continue
                    shown = [chat_messages(current, index) for index in range(len(chats))]
                    found = [answer_boxes(answer) for answer in current[-1].answers]
                    new = [now != before and boxes_shown(media, now) for now, before in zip(found, boxes, strict=True)]
                    images, boxes = (
                        [gr.update(value=image, visible=True) if image else gr.skip() for image in new],
                        found,
                    )
                    yield [gr.skip(), list(current), *shown, gr.skip(), gr.skip(), *images]
            except (MediaError, ModelError) as error:
                shown = [chat_messages(past, index) for index in range(len(chats))]
                kept = {"text": text, "files": list(files) if isinstance(error, ModelError) else []}
                yield [kept, past, *shown, "", [], *[gr.update(visible=False)] * len(drawn)]
                said = message("medium", language, error=error)
                raise gr.Error(said, duration=None, print_exception=False) from None

        def on_ask(content, past, *settings_and_request):
            content = content or {}
            text, request = (content.get("text") or "").strip(), settings_and_request[-1]
            if not text:
                language = request.headers.get("accept-language", "")
                raise gr.Error(message("empty", language), print_exception=False)
            yield from answer(text, content.get("files") or [], past, *settings_and_request)

        def ask(content, past, system, temperature, max_tiles, max_new_tokens, num_frames, request: gr.Request):
            yield from on_ask(content, past, system, temperature, max_tiles, max_new_tokens, num_frames, request)

        def again(past, system, temperature, max_tiles, max_new_tokens, num_frames, request: gr.Request):
            if not past:
                language = request.headers.get("accept-language", "")
                raise gr.Error(message("nothing", language), print_exception=False)
            last, options = past[-1], (system, temperature, max_tiles, max_new_tokens, num_frames)
            yield from answer(last.text, last.files, past[:-1], *options, request)

        def halt(request: gr.Request):
            page.stop(request.session_hash)

        def forget():
            return [{"text": "", "files": []}, [], *[[]] * len(chats), "", [], *[gr.update(visible=False)] * len(drawn)]

        options = [system, temperature, max_tiles, max_new_tokens, num_frames]
        queueing = {
            "concurrency_limit": min(model.num_parallel for model in page.models),
            "concurrency_id": "answers",
            "show_progress": "minimal",
        }
        box.submit(ask, [box, exchanges, *options], outputs, api_name="ask", **queueing)
        retry.click(again, [exchanges, *options], outputs, api_name="retry", **queueing)
        stop.click(halt, queue=False, api_name="stop")
        clear.click(halt, queue=False, api_name=False).then(forget, None, outputs, queue=False, api_name="clear")
        for chat in chats:  # its own button for clearing
            chat.clear(halt, queue=False, api_name=False).then(forget, None, outputs, queue=False, api_name=False)
        blocks.unload(halt)
    return blocks.queue(max_size=MAX_WAITING), i18n


def check_port(host: str, port: int) -> None:
    """Refuses a port that can't be had, before a model is loaded.

    Raises:
        ValueError: It is in use or may not be used, or the host isn't this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"port {port} of {host} can't be used ({reason}); give another --port or --host") from None


def _warm_up() -> None:
    """Imports what Gradio asks Matplotlib for at the first question: half of the processor time of its answer."""
    import matplotlib

    matplotlib.get_backend()


def launch(
    models: Sequence[DemoModel],
    limits: Limits,
    *,
    host: str,
    port: int,
    password: str | None = None,
    block: bool = True,
):
    """Serves the page.

    Args:
        models: One or two.
        limits: Of uploads.
        host: Address to listen at.
        port: Port to listen at.
        password: Asked from every visitor, whatever the user name; None lets everyone in.
        block: Return only when the page is ended.

    Returns:
        The Gradio page, to be closed.
    """
    import gradio as gr

    _warm_up()
    # Gradio's own, at every question of a visitor
    warnings.filterwarnings("ignore", message="'HTTP_422_UNPROCESSABLE_ENTITY' is deprecated")
    blocks, i18n = build_page(Page(models, limits))

    def admits(_user: str, given: str) -> bool:
        return hmac.compare_digest(given.encode(), password.encode())

    blocks.launch(
        server_name=host,
        server_port=port,
        auth=None if password is None else admits,
        max_file_size=limits.max_bytes,
        max_threads=MAX_WAITING + 8,
        state_session_capacity=MAX_SESSIONS,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=["settings"],
        i18n=i18n,
        css=NO_SHARING,
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),  # no web fonts
        app_kwargs={"middleware": [Middleware(OwnFilesOnly)]},
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"The page is at {blocks.local_url} (Ctrl-C ends it)", flush=True)
    if block:
        blocks.block_thread()
    return blocks
