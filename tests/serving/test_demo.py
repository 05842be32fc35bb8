"""The page as its visitors meet it: over HTTP, and in a browser where one is installed."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from tests.conftest import HANGS_AFTER
from xtuner_plugins.inference.session import ChatSession
from xtuner_plugins.processes import free_port
from xtuner_plugins.serving.demo import NO_SHARING, SHARE_DRAWING, Page, boxes_shown, check_port, launch
from xtuner_plugins.serving.demo_media import Limits, Medium
from xtuner_plugins.serving.demo_models import LocalModel, Settings

SETTINGS = ("", 0, 6, 8, 2)  # system, temperature, tiles, new tokens, frames
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Echo:
    """Answers with the question, word by word; "wait" goes on until it is stopped."""

    name, max_tiles, num_parallel = "echo", None, 1
    stopped = threading.Event()

    def tiles(self, media, max_tiles):
        return []

    def answer(self, turns, settings, stop, emit):
        for word in turns[-1].text.split():
            emit(f"{word} ")
        if turns[-1].text.endswith("wait"):
            while not stop.wait(0.05):
                emit(".")
            self.stopped.set()


def serve(*models, **options):
    limits = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
    return launch(models, limits, host="127.0.0.1", port=free_port(), block=False, **options)


@pytest.fixture(scope="module")
def echo():
    blocks = serve(Echo())
    yield blocks.local_url
    blocks.close()


def connect(url, **options):
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": HANGS_AFTER}, **options)


def answer_of(chat):
    assert chat[-1]["role"] == "assistant"
    return chat[-1]["content"][0]["text"]


def test_the_model_begins_before_the_page_is_told():
    """Tiles are encoded for the page while the model works, not before."""
    begun = threading.Event()

    class Model(Echo):
        def answer(self, turns, settings, stop, emit):
            begun.set()
            emit("Yes.")

    page = Page([Model()], Limits(max_bytes=1 << 20, max_pixels=1 << 20))
    steps = page.ask("What?", [], [], Settings(), 2, "session")
    exchanges, _ = next(steps)
    assert begun.wait(30) and exchanges[-1].answers is None
    assert [list(exchanges)[-1].answers for exchanges, _ in steps][-1] == ("Yes.",)


def test_the_first_question_imports_nothing_large(run_tool):
    """Gradio has Matplotlib import pyplot at the first event of a process; the page does so before it is announced."""
    script = (
        "import sys, threading\n"
        "from tests.serving.test_demo import Echo, SETTINGS, connect, serve\n"
        "blocks = serve(Echo())\n"
        "client = connect(blocks.local_url)\n"
        "before = set(sys.modules)\n"
        "client.predict({'text': 'Hi', 'files': []}, *SETTINGS, api_name='/ask')\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print('new:', *sorted(new & {'matplotlib', 'pandas', 'torch', 'transformers', 'numpy'}))\n"
        "blocks.close()\n"
    )
    done = run_tool("-c", script)
    assert done.returncode == 0 and "new:\n" in done.stdout and "Warning" not in done.stderr, done.stdout + done.stderr


def test_boxes_are_drawn_on_the_last_image():
    media = [
        [Medium("a.png", (Image.new("RGB", (2560, 640)),), False)],
        [Medium("v.mp4", (Image.new("RGB", (9, 9)),), True)],
    ]
    drawn = boxes_shown(media, [(0, 0, 500, 500)])
    assert drawn.size == (1280, 320) and drawn.getpixel((0, 0)) != (0, 0, 0) == drawn.getpixel((1000, 300))
    assert boxes_shown(media[1:], [(0, 0, 500, 500)]) is None and boxes_shown(media, []) is None


def test_tiles_are_shown_by_file():
    class Cutting(Echo):
        name, max_tiles, tokens_per_tile = "mine", 6, 16

        def tiles(self, media, max_tiles):
            return [torch.zeros(3, 3, 8, 8, dtype=torch.uint8), *torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)]

    image = Image.new("RGB", (8, 8))
    media = [Medium("a.png", (image,), False), Medium("v.mp4", (image, image), True)]
    gallery, line = Page([Cutting()], Limits(1 << 20, 1 << 20)).look(media, 6, "en")
    assert [caption for _, caption in gallery] == ["1 a.png", "2 a.png", "3 a.png", "1 v.mp4", "2 v.mp4"]
    assert line == "**mine** sees 5 tiles of 8 x 8 pixels: 80 image tokens. (a.png: 3, v.mp4: 2)"


def test_no_image_is_shared_in_any_language():
    """The page's style hides Gradio's button by its drawing."""
    import gradio

    (script,) = Path(gradio.__file__).parent.glob("templates/frontend/assets/ShareButton-*.js")
    assert f'<path d="{SHARE_DRAWING}' in script.read_text(encoding="utf-8") and SHARE_DRAWING in NO_SHARING


def test_twenty_visitors_are_not_mixed_up(echo):
    def visit(number):
        client = connect(echo)
        first = client.predict({"text": f"number {number}", "files": []}, *SETTINGS, api_name="/ask")[1]
        second = client.predict({"text": f"again {number}", "files": []}, *SETTINGS, api_name="/ask")[1]
        return answer_of(first), answer_of(second), len(second)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, range(20)))
    assert answers == [(f"number {number}", f"again {number}", 4) for number in range(20)]


def test_retry_asks_the_last_question_again(echo):
    client = connect(echo)
    client.predict({"text": "one", "files": []}, *SETTINGS, api_name="/ask")
    chat = client.predict(*SETTINGS, api_name="/retry")[1]
    assert (answer_of(chat), len(chat)) == ("one", 2)


def test_a_client_that_hangs_up_stops_the_model(echo):
    Echo.stopped.clear()
    job = connect(echo).submit({"text": "please wait", "files": []}, *SETTINGS, api_name="/ask")
    while not job.outputs():
        time.sleep(0.05)
    job.cancel()
    assert Echo.stopped.wait(30)


def test_bad_input_gets_one_clear_answer(echo, tmp_path, capfd):
    from gradio_client import handle_file

    path = tmp_path / "a.png"
    path.write_text("hello")
    client = connect(echo)
    with pytest.raises(Exception, match="a.png: no image"):
        client.predict({"text": "What?", "files": [handle_file(str(path))]}, *SETTINGS, api_name="/ask")
    with pytest.raises(Exception, match="Type a question first"):
        client.predict({"text": " ", "files": []}, *SETTINGS, api_name="/ask")
    large = {"files": ("a.png", bytes(2 << 20))}
    assert httpx.post(f"{echo}gradio_api/upload", files=large, timeout=60).status_code == 413
    assert answer_of(client.predict({"text": "Still here", "files": []}, *SETTINGS, api_name="/ask")[1]) == "Still here"
    assert "Traceback" not in capfd.readouterr().err


def test_a_password():
    blocks = serve(Echo(), password="open sesame")
    try:
        with pytest.raises(Exception):  # noqa: B017  the client's own kinds of refusal differ by release
            connect(blocks.local_url)
        client = connect(blocks.local_url, auth=("anyone", "open sesame"))
        assert answer_of(client.predict({"text": "Hi", "files": []}, *SETTINGS, api_name="/ask")[1]) == "Hi"
    finally:
        blocks.close()


def test_a_port_in_use_is_named(echo):
    port = int(echo.rstrip("/").rpartition(":")[2])
    with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 can't be used"):
        check_port("127.0.0.1", port)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("language, words", [("en-US", "sees 7 tiles"), ("zh-CN", "看到 7 个")])
def test_in_a_browser(toy_base, tmp_path, language, words):
    playwright = pytest.importorskip("playwright.sync_api")
    Image.effect_noise((336, 224), 90).save(tmp_path / "photo.png")
    blocks = serve(LocalModel(ChatSession.from_pretrained(toy_base, device="cpu"), "toy"))
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = browser.new_page(locale=language)
            page.set_default_timeout(120_000)
            addresses = []
            page.on("request", lambda request: addresses.append(request.url))
            page.goto(blocks.local_url)
            page.set_input_files("#ask input[type=file]", tmp_path / "photo.png")
            page.wait_for_selector("#ask .thumbnail-item")
            page.fill("#ask textarea", "What is it?")
            page.press("#ask textarea", "Enter")
            page.wait_for_selector("#chat-0 .bot")
            page.wait_for_selector(f"#seen:has-text('{words}')")
            assert page.locator(f"button:has(path[d^='{SHARE_DRAWING}']):visible").count() == 0
            browser.close()
    finally:
        blocks.close()
    own = (blocks.local_url, "data:", "blob:")
    assert [address for address in addresses if not address.startswith(own)] == []
