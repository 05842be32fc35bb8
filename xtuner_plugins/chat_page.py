"""The web page: a conversation with one model about images and videos, and the same over HTTP as ``ask``.

It is gradio's ChatInterface over a session. Nothing is fetched from other sites and nothing is reported.
"""

# Annotations are evaluated here: gradio looks for its own classes among them.
import hmac
import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr  # noqa: E402
import torch  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: E402

from .datasets.images.media import load_image  # noqa: E402
from .datasets.images.video import load_frames  # noqa: E402
from .errors import MediaError  # noqa: E402
from .hub.constants import IMAGE_PLACEHOLDER  # noqa: E402
from .inference.drawing import with_boxes  # noqa: E402
from .inference.session import ChatSession, Frame, Turn  # noqa: E402

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
DRAWN_SIDE = 1280  # pixels of the longer side of an image with boxes
MAX_WAITING = 64  # visitors in the queue; a further one is told that it is full
KEPT_SECONDS = 6 * 3600  # how long uploads are kept
# Gradio shows a button on images that would upload them to a public site; its drawing is the same in all languages.
NO_SHARING = 'button:has(path[d^="M23,20a5,5"]) {display: none !important}'
# Gradio's page names scripts and fonts of other sites: browsers don't load them.
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
CHINESE = {
    "System prompt (empty: the model's own)": "系统提示词（留空则用模型自带的）",
    "Temperature (0: the likeliest word)": "温度（0 表示总取最可能的词）",
    "Most tiles of a question's images, thumbnails not counted": "每次提问的图块上限（不含缩略图）",
    "Longest answer in tokens": "回答的最大 token 数",
    "Frames of a video": "视频抽取的帧数",
    "Settings": "设置",
    "What the model sees": "模型看到的图块",
}


def _own_site(app):
    """ASGI middleware: every answer tells browsers to load nothing from other sites."""

    async def with_policy(scope, receive, send) -> None:
        async def told(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, told)

    return with_policy


def turn_of(text: str, paths: list[str], num_frames: int, answer: str | None = None) -> Turn:
    """A question with the files that came with it; the frames of a video are numbered as in training.

    Raises:
        MediaError: A file is no readable image or video.
    """
    images, lines = [], []
    for path in paths:
        try:
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                frames = [Frame(frame) for frame in load_frames(path, num_frames)]
                lines += [f"Frame-{number}: {IMAGE_PLACEHOLDER}" for number in range(1, len(frames) + 1)]
                images += frames
            else:
                images.append(load_image(path))
                lines.append(IMAGE_PLACEHOLDER)
        except MediaError as error:  # loaders speak of records and of the server's folders
            is_of_data = any(word in error.remedy for word in ("record", "folder"))
            remedy = "send it again, or another file" if is_of_data else error.remedy
            raise MediaError(error.reason, error.problem, remedy, Path(path).name) from None
    return Turn(text if IMAGE_PLACEHOLDER in text else "\n".join([*lines, text]), images, answer)


def past_turns(history: list[dict], num_frames: int) -> list[Turn]:
    """The answered turns of gradio's history (texts and files; refusals have metadata); errors as of `turn_of`."""
    turns, question, paths = [], "", []
    for message in history:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts = [part["text"] for part in parts if "text" in part]
        if message["role"] == "user":
            question, paths = "\n".join(texts), [part["file"]["path"] for part in parts if "file" in part]
        elif texts and not message.get("metadata"):
            turns.append(turn_of(question, paths, num_frames, "\n".join(texts)))
    return turns


def build_page(session: ChatSession, name: str) -> tuple[gr.Blocks, gr.I18n]:
    """The page of a session that answers one question at a time, titled by the model's name; its words by language."""
    i18n = gr.I18n(**{"en": {word: word for word in CHINESE}, "zh-CN": CHINESE, "zh": CHINESE})
    most = session.tiling.max_tiles

    def ask(
        message: dict, system: str, temperature: float, max_tiles: int, max_tokens: int, frames: int, history: list
    ) -> Generator[tuple[Any, Any], None, tuple[str, list]]:
        """Answers a question about images or not; yields the answer so far, with the tiles at first and in the end."""
        if not message["text"].strip():
            raise gr.Error("Type a question, too. 请输入问题。", print_exception=False)
        options = {"do_sample": True, "temperature": temperature} if temperature else {}
        options |= {"system": system, "max_tiles": int(max_tiles), "max_new_tokens": int(max_tokens)}
        answer = ""
        try:
            turn = turn_of(message["text"], message["files"], int(frames))
            cut = [tile.permute(1, 2, 0).numpy() for image in session.tiles(turn.images, max_tiles) for tile in image]
            shown = [each.image.path for each in tiles.postprocess(cut).root]  # written here, not with each yield
            yield "", shown  # not with every word: the page would load the same tiles again
            for piece in session.reply([*past_turns(history, int(frames)), turn], **options):
                answer += piece
                yield answer.lstrip(), gr.skip()
        except (ValueError, torch.cuda.OutOfMemoryError) as error:
            too_large = "out of memory; lower the tile limit, or begin a new conversation"
            said = str(error) if isinstance(error, ValueError) else too_large
            raise gr.Error(said, print_exception=False) from None
        yield answer.strip(), shown  # programs get the last values
        return answer.strip(), [image for image in turn.images if not isinstance(image, Frame)]

    def talk(message: dict, history: list, *settings: Any) -> Iterator[tuple[Any, Any]]:
        """Answers on the page, with boxes in the end. A refusal is a message there: an error would block the page."""
        try:
            answer, stills = yield from ask(message, *settings, history)
        except gr.Error as error:
            yield {"content": error.message, "metadata": {"title": "Not answered 未回答"}}, gr.skip()
            return
        if stills and (drawn := with_boxes(stills[-1], answer)):
            drawn.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
            yield [answer, gr.Image(drawn, format="png", buttons=["fullscreen"])], gr.skip()

    # Least, most, at first and step of the numbers, which are the second to fifth of the words.
    ranges = (0, 2, 0, 0.1), (1, max(24, most), most, 1), (1, 4096, 512, 1), (1, 32, 8, 1)
    with gr.Blocks(title=name, analytics_enabled=False, fill_width=True, delete_cache=(600, KEPT_SECONDS)) as page:
        shape = {"columns": 8, "height": 220, "format": "png", "buttons": ["fullscreen"]}
        tiles = gr.Gallery(label=i18n("What the model sees"), **shape, render=False)
        system = gr.Textbox("", label=i18n("System prompt (empty: the model's own)"), lines=2, render=False)
        rows = zip(ranges, list(CHINESE)[1:5], strict=True)
        numbers = [gr.Slider(*values, step=step, label=i18n(label), render=False) for (*values, step), label in rows]
        chatbot = gr.Chatbot(height=460, show_label=False, buttons=["copy"], render=False)
        textbox = gr.MultimodalTextbox(
            file_count="multiple", max_plain_text_length=100_000, show_label=False, render=False
        )
        accordion = gr.Accordion(i18n("Settings"), open=False, render=False)
        shown = {"title": name, "chatbot": chatbot, "textbox": textbox, "additional_inputs_accordion": accordion}
        given = {"additional_inputs": [system, *numbers], "additional_outputs": [tiles]}
        gr.ChatInterface(talk, multimodal=True, api_visibility="private", **shown, **given)
        tiles.render()
        # Components check what programs send, above all that files are uploads.
        inputs, text = [textbox, system, *numbers, chatbot], gr.Textbox(visible=False)
        gr.Button(visible=False).click(ask, inputs, [text, tiles], api_name="ask")
    return page.queue(max_size=MAX_WAITING), i18n


def launch(
    session: ChatSession, name: str, *, host: str, port: int, password: str | None = None, max_upload_mb: float = 50
) -> gr.Blocks:
    """Starts the page of a model and returns it; `block_thread` waits for its end, `close` ends it.

    Args:
        session: Answers.
        name: The model's.
        host: Address to listen at. Of a name or an address of this machine, requests must ask for it or for localhost:
            a page elsewhere can't reach the model through the visitor's browser.
        port: Port to listen at.
        password: Asked from every visitor, whatever the user name; None lets everyone in.
        max_upload_mb: Largest file.

    Raises:
        OSError: The port can't be used.
    """
    warnings.filterwarnings("ignore", message="'HTTP_422", module="gradio")  # its own use of Starlette
    page, i18n = build_page(session, name)
    hosts = ["*"] if host in ("0.0.0.0", "[::]") else [host, "localhost", "127.0.0.1"]
    page.launch(
        server_name=host,
        server_port=port,
        auth=None if password is None else lambda _, given: hmac.compare_digest(given.encode(), password.encode()),
        max_file_size=int(max_upload_mb * 2**20),
        **dict.fromkeys(("share", "ssr_mode", "pwa", "mcp_server", "enable_monitoring"), False),
        footer_links=["settings"],
        css=NO_SHARING,
        i18n=i18n,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_own_site)]},
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    return page
