"""The page as its visitors and programs meet it: over HTTP, and in a browser where one is installed."""

import io
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gradio import Chatbot
from gradio_client import Client, handle_file
from PIL import Image

from tests.conftest import HANGS_AFTER
from xtuner_plugins import chat_page
from xtuner_plugins.chat_page import build_page, launch
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import Frame
from xtuner_plugins.processes import free_port

SETTINGS = ("", 0, 6, 8, 2)  # system, temperature, tiles, new tokens, frames
HEIC = b"\0\0\0\x18ftypheic" + bytes(40)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Echo:
    """A session that answers with all questions so far, word by word; "wait" goes on until it is stopped."""

    tiling = DynamicTiling(max_tiles=6, tile_size=28)
    stopped = threading.Event()

    def tiles(self, images, max_tiles):
        return [self.tiling(image) for image in images]

    def reply(self, turns, system, **options):
        try:
            for word in [*(system or "").split(), *" | ".join(turn.question for turn in turns).split()]:
                yield f"{word} "
            while turns[-1].question.endswith("wait"):
                time.sleep(0.05)
                yield "."
        finally:
            self.stopped.set()


@pytest.fixture(scope="module")
def echo():
    page = launch(Echo(), "echo", host="127.0.0.1", port=free_port(), max_upload_mb=1)
    yield page.local_url
    page.close()


def connect(url):
    return Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": HANGS_AFTER})


def ask(client, text, *files, system="", history=()):
    message = {"text": text, "files": [handle_file(str(file)) for file in files]}
    return client.predict(message, system, *SETTINGS[1:], history, api_name="/ask")[0]


def said(role, text, *files):
    files = [{"type": "file", "file": handle_file(str(file))} for file in files]
    return {"role": role, "content": [*files, {"type": "text", "text": text}]}


@pytest.fixture
def photo(tmp_path):
    Image.effect_noise((56, 28), 90).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_twenty_visitors_are_not_mixed_up(echo):
    def visit(number):
        client, question = connect(echo), f"number {number}"
        first = ask(client, question)
        past = [said("user", question), said("assistant", first)]
        return first, ask(client, "again", system="Sys.", history=past)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, range(20)))
    assert answers == [(f"number {number}", f"Sys. number {number} | again") for number in range(20)]


def test_curl_asks_in_two_requests_as_the_docs_show(echo, photo):
    def curl(text, *paths, **settings):
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        data, call = {"message": {"text": text, "files": files}, **settings}, f"{echo}gradio_api/call/v2/ask"
        event = httpx.post(call, json=data, timeout=HANGS_AFTER).json()["event_id"]
        lines = httpx.get(f"{call}/{event}", timeout=HANGS_AFTER).text.splitlines()
        assert lines[-3] == "event: complete", lines
        return json.loads(lines[-2].removeprefix("data: "))

    assert curl("Hello")[0] == "Hello" and curl("Hello", system="Sys.")[0] == "Sys. Hello"
    with pytest.raises(AssertionError, match="event: error"):
        curl("What?", str(photo))  # a file of the server that nobody has sent
    path = httpx.post(f"{echo}gradio_api/upload", files={"files": photo.open("rb")}, timeout=60).json()[0]
    answer, tiles = curl("Where? [[0, 0, 500, 500]]", path)  # an answer with boxes stays text
    assert answer == "<image> Where? [[0, 0, 500, 500]]"
    shown = [Image.open(io.BytesIO(httpx.get(tile["image"]["url"]).content)) for tile in tiles]
    assert [(tile.format, tile.size) for tile in shown] == [("PNG", (28, 28))] * 3  # two and the thumbnail


def test_one_client_asks_about_an_image_again(echo, photo):
    client = connect(echo)
    assert ask(client, "What?", photo) == "<image> What?"
    assert ask(client, "Where?", photo) == "<image> Where?"  # each question is alone
    past = [said("user", "What?", photo), said("assistant", "A box.")]
    assert ask(client, "And?", history=past) == "<image> What? | And?"
    answer, tiles = client.predict({"text": "[[0, 0, 9, 9]]", "files": [handle_file(str(photo))]}, api_name="/ask")
    assert answer == "<image> [[0, 0, 9, 9]]" and [Image.open(tile["image"]).size for tile in tiles] == [(28, 28)] * 3


def test_a_client_that_hangs_up_stops_the_model(echo):
    job = connect(echo).submit({"text": "please wait", "files": []}, *SETTINGS, api_name="/ask")
    while not job.outputs():
        time.sleep(0.05)
    Echo.stopped.clear()
    job.cancel()
    assert Echo.stopped.wait(30)


def test_bad_input_gets_one_clear_answer(echo, tmp_path, capfd, monkeypatch):
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "phone.heic").write_bytes(HEIC)
    client = connect(echo)
    for words, said in (
        (("What?", tmp_path / "a.png"), r"^'?a.png: can't be decoded .*another file"),
        (("What?", tmp_path / "phone.heic"), "phone.heic: .*it is HEIC.*convert it to JPEG"),
        ((" ",), "Type a question"),
    ):
        with pytest.raises(Exception, match=said):
            ask(client, *words)
    large = {"files": ("a.png", bytes(2 << 20))}
    assert httpx.post(f"{echo}gradio_api/upload", files=large, timeout=60).status_code == 413
    assert ask(client, "Still here") == "Still here" and "Traceback" not in capfd.readouterr().err
    # other sites neither reach the page nor are asked
    for page in echo, f"{echo}gradio_api/call/v2/ask/1":
        assert httpx.get(page, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(echo).headers["content-security-policy"].startswith("default-src 'self'")


def test_a_password():
    page = launch(Echo(), "echo", host="127.0.0.1", port=free_port(), password="open sesame")
    login, config = f"{page.local_url}login", f"{page.local_url}config"
    assert httpx.get(config).status_code == 401
    for call in "call/ask", "call/v2/ask":
        assert httpx.post(f"{page.local_url}gradio_api/{call}", json={"data": []}).status_code == 401
    for password, status in ("open", 400), ("open sesame", 200):
        assert httpx.post(login, data={"username": "anyone", "password": password}).status_code == status
    page.close()


def test_turns_of_a_history_and_frames_of_a_video(tmp_path, monkeypatch):
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "a.png")
    monkeypatch.setattr(chat_page, "load_frames", lambda path, count: [image] * count)
    files = [{"type": "file", "file": {"path": str(tmp_path / name)}} for name in ("a.png", "b.MP4")]
    answer = [{"type": "text", "text": "A box."}, {"type": "component", "component": "image"}]
    history = [{"role": "user", "content": [{"type": "text", "text": "What?"}, *files]}]
    history += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    first, second = chat_page.past_turns([*history, {"role": "assistant", "content": "No."}], 2)
    assert (first.question, first.answer) == ("<image>\nFrame-1: <image>\nFrame-2: <image>\nWhat?", "A box.")
    assert [isinstance(each, Frame) for each in first.images] == [False, True, True]
    assert (second.question, second.answer, second.images) == ("And?", "No.", [])


def test_a_refusal_is_a_message_that_the_model_never_sees(tmp_path, photo):
    (tmp_path / "phone.heic").write_bytes(HEIC)
    page, bot, history = build_page(Echo(), "echo")[0], Chatbot(), []
    talk = next(fn.fn.__wrapped__ for fn in page.fns.values() if fn.api_name == "talk")
    for text, path, told in (
        ("first [[0, 0, 9, 9]]", photo, r"<image> first \[\[0, 0, 9, 9]]"),
        ("What?", tmp_path / "phone.heic", "phone.heic: .*it is HEIC.*convert it to JPEG"),
        (" ", photo, "Type a question"),
        ("second", None, r"<image> first \[\[0, 0, 9, 9]] \| second"),
    ):
        files = [str(path)] if path else []
        *_, (answer, _) = talk({"text": text, "files": files}, history, *SETTINGS)
        parts = answer if isinstance(answer, list) else [answer]
        refused = isinstance(answer, dict) and answer["metadata"]["title"].startswith("Not answered")
        assert refused == told.startswith(("phone", "Type")) and len(parts) == 1 + (text[:5] == "first")
        assert re.match(told, answer["content"] if refused else parts[0])
        asked = {"role": "user", "content": [*({"path": file} for file in files), text]}
        replies = [{"role": "assistant", **(part if refused else {"content": part})} for part in parts]
        history = bot.preprocess(bot.postprocess([*history, asked, *replies]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_in_a_browser(toy_base, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    Image.effect_noise((336, 224), 90).save(tmp_path / "photo.png")
    (tmp_path / "phone.heic").write_bytes(HEIC)
    page = launch(open_session(toy_base, device="cpu"), "toy", host="127.0.0.1", port=free_port())
    addresses, count = [], "document.querySelectorAll('.grid-container img, .thumbnail-item img').length"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for language, settings, words in (("en-US", "Settings", "System prompt"), ("zh-CN", "设置", "系统提示词")):
            window = browser.new_page(locale=language, viewport={"width": 390, "height": 844})
            window.set_default_timeout(120_000)
            window.on("response", lambda response: addresses.append(response.url))
            window.goto(page.local_url)
            window.set_input_files("input[type=file] >> nth=0", tmp_path / "photo.png")
            window.wait_for_selector(".thumbnail-item")
            window.fill("textarea >> nth=0", "What is it?")
            window.press("textarea >> nth=0", "Enter")
            window.wait_for_selector(".bot")
            window.wait_for_function(f"{count} >= 7")  # the tiles
            window.wait_for_selector("textarea:enabled >> nth=0")
            window.set_input_files("input[type=file] >> nth=0", tmp_path / "phone.heic")
            window.wait_for_selector("img[src*='phone.heic']")
            window.fill("textarea >> nth=0", "And here?")
            window.press("textarea >> nth=0", "Enter")
            window.wait_for_selector("text=it is HEIC")
            window.fill("textarea:enabled >> nth=0", "And now?")  # a refusal ends neither page nor conversation
            window.press("textarea >> nth=0", "Enter")
            window.wait_for_function("document.querySelectorAll('.bot.message').length == 3")
            window.wait_for_selector("textarea:enabled >> nth=0")
            assert window.evaluate("document.documentElement.scrollWidth") <= 390
            window.get_by_text(settings).first.click()
            window.wait_for_selector(f"text={words}")
    page.close()
    assert [address for address in addresses if not address.startswith((page.local_url, "data:", "blob:"))] == []
