"""How soon does the web page answer?

    python benchmarks/bench_page.py exports/mine
    python benchmarks/bench_page.py exports/mine --browser /usr/bin/chromium

Starts `tools/web_demo.py MODEL` as a user does and asks questions, each about a new image; the first one of a process
pays for what is loaded late. It prints, per question, the seconds from sending it to the first text of the answer, and
the processor time that the server spent in between, which a busy machine stretches but doesn't change. Without
--browser it speaks to the page's queue as the browser's script does; with it the text is seen in the browser's window,
drawing included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.processes import free_port  # noqa: E402
from xtuner_plugins.serving.demo_texts import TEXTS  # noqa: E402

QUESTION = "What is in the image?"
# The page shows whole words: one without an end, as random weights write them, would be shown after the last token.
NEW_TOKENS = 16
PATIENCE_S = 120


class Server:
    """The page's process, and the processor time that it has spent."""

    def __init__(self, model: str):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(ROOT / "tools/web_demo.py"), model, "--port", str(port), "--device", "cpu"]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if "page is at" not in self.process.stdout.readline():
            raise SystemExit("the page did not start")
        self.started = time.perf_counter() - began
        self._times = psutil.Process(self.process.pid).cpu_times

    def seconds(self) -> float:
        times = self._times()
        return times.user + times.system

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def over_http(server: Server, images: list[str]) -> list[tuple[float, float]]:
    """Seconds and processor seconds to the first text of each answer."""
    api = f"{server.url}/gradio_api"
    with httpx.Client(timeout=600) as client:
        config = client.get(f"{server.url}/config").json()
        (ask,) = [each for each in config["dependencies"] if each["api_name"] == "ask"]
        return [_ask(client, api, ask["id"], server, number, path) for number, path in enumerate(images)]


def _ask(client: httpx.Client, api: str, function: int, server: Server, number: int, path: str) -> tuple[float, float]:
    with open(path, "rb") as file:
        (sent,) = client.post(f"{api}/upload", files={"files": file}).json()
    files = [{"path": sent, "meta": {"_type": "gradio.FileData"}}]
    data = [{"text": QUESTION, "files": files}, None, "", 0, 12, NEW_TOKENS, 8]
    session, spent, began = f"bench{number}", server.seconds(), time.perf_counter()
    client.post(f"{api}/queue/join", json={"data": data, "fn_index": function, "session_hash": session})
    pieces = 0
    took = None
    with client.stream("GET", f"{api}/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            message = json.loads(line[5:])["msg"] if line.startswith("data:") else ""
            pieces += message == "process_generating"
            if pieces == 2 and took is None:  # the first one shows the question
                took = time.perf_counter() - began, server.seconds() - spent
            if message == "process_completed":
                return took
    raise SystemExit("the page hung up")


def in_browser(server: Server, images: list[str], browser: str) -> list[tuple[float, float]]:
    """As `over_http`, seen in a window; each question in a conversation of its own."""
    from playwright.sync_api import sync_playwright

    results = []
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for path in images:
            page = window.new_page(locale="en-US")
            page.set_default_timeout(PATIENCE_S * 1000)
            page.goto(server.url)
            page.click("button.label-wrap")  # opens the settings
            page.get_by_label(f"number input for {TEXTS['max_new_tokens'][0]}").fill(str(NEW_TOKENS))
            page.set_input_files("#ask input[type=file]", path)
            page.wait_for_selector("#ask .thumbnail-item")
            page.fill("#ask textarea", QUESTION)
            spent, began = server.seconds(), time.perf_counter()
            page.press("#ask textarea", "Enter")
            # Until the text comes, a message that is pending says "Loading content" to screen readers.
            page.wait_for_selector("#chat-0 .bot.message:not(.pending) >> text=/\\S/")
            results.append((time.perf_counter() - began, server.seconds() - spent))
            # The page takes no question while it answers one, and the server answers one at a time.
            _wait_until_idle(server)
            page.close()
        window.close()
    return results


def _wait_until_idle(server: Server) -> None:
    """Until the server spends less than a tenth of a core."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        spent = server.seconds()
        time.sleep(0.5)
        if server.seconds() - spent < 0.05:
            return
    raise SystemExit("the server did not stop answering")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--browser", metavar="PATH", help="Chromium or Chrome")
    parser.add_argument("--questions", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [str(Path(folder, f"{number}.png")) for number in range(args.questions)]
        for path in images:
            Image.effect_noise((672, 448), 90).save(path)
        server = Server(args.model)
        try:
            print(f"start: {server.started:.1f} s, {server.seconds():.1f} s of processor time")
            results = in_browser(server, images, args.browser) if args.browser else over_http(server, images)
        finally:
            server.close()
    for number, (took, spent) in enumerate(results, 1):
        print(f"question {number}: first text after {took:.2f} s, {spent:.2f} s of processor time")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
