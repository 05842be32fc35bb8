"""Makes web_demo.png: the web page over the quick start's model, in headless Chromium.

    make quickstart
    python docs/images/make_web_demo.py docs/images

It needs Chromium (on Debian: apt-get install chromium).
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUICKSTART = ROOT / "work_dirs/quickstart"
IMAGE = QUICKSTART / "data/images/test/00000.jpg"


def photograph(url: str, photo: Path, out: Path, width: int = 1280) -> None:
    """Asks about the photo on the page and writes what a window of this width shows."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: apt-get install chromium")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--hide-scrollbars"])
        page = window.new_page(viewport={"width": width, "height": 1020})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.set_input_files("input[type=file] >> nth=0", photo)
        page.wait_for_selector(".thumbnail-item")
        page.fill("textarea >> nth=0", "What number is on the sign?")
        page.press("textarea >> nth=0", "Enter")
        page.wait_for_selector(".bot")
        page.mouse.move(0, 0)
        page.wait_for_timeout(5000)  # the rest of the answer, and what moves
        page.screenshot(path=out)
        window.close()
    Image.open(out).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(out, optimize=True)


def main(out: Path) -> None:
    """Serves the page and writes the image into the folder."""
    from xtuner_plugins.chat_page import launch
    from xtuner_plugins.inference.opening import open_session
    from xtuner_plugins.processes import free_port

    session = open_session(QUICKSTART / "model", device="cpu")
    page = launch(session, "quick start", host="127.0.0.1", port=free_port())
    try:
        photograph(page.local_url, IMAGE, out / "web_demo.png")
    finally:
        page.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
