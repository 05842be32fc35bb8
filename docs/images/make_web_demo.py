"""Makes web_demo.png and web_demo_zh-CN.png: the web page over the quick start's model, in headless Chromium.

    make quickstart
    python docs/images/make_web_demo.py docs/images

It needs Chromium and a font with Chinese (on Debian: apt-get install chromium fonts-noto-cjk).
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUICKSTART = ROOT / "work_dirs/quickstart"
IMAGE = QUICKSTART / "data/images/test/00000.jpg"
QUESTION = "What number is on the sign?"  # the toy model knows English alone
FILES = {"en-US": "web_demo.png", "zh-CN": "web_demo_zh-CN.png"}


def photograph(url: str, photo: Path, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--hide-scrollbars"])
        for language, name in FILES.items():
            page = window.new_page(locale=language, viewport={"width": 1280, "height": 1020})
            page.goto(url)
            page.set_input_files("#ask input[type=file]", photo)
            page.wait_for_selector("#ask .thumbnail-item")
            page.fill("#ask textarea", QUESTION)
            page.press("#ask textarea", "Enter")
            page.wait_for_selector("#chat-0 .bot.message:not(.pending) >> text=/\\S/")
            page.wait_for_selector("#seen:has-text('112 x 112')")
            page.mouse.move(0, 0)
            page.wait_for_timeout(5000)  # the rest of the answer, and what moves
            page.screenshot(path=out / name)
            page.close()
            image = Image.open(out / name).convert("RGB")
            image.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(out / name, optimize=True)
        window.close()


def main(out: Path) -> None:
    from xtuner_plugins.inference.session import ChatSession
    from xtuner_plugins.processes import free_port
    from xtuner_plugins.serving.demo import launch
    from xtuner_plugins.serving.demo_media import Limits
    from xtuner_plugins.serving.demo_models import LocalModel

    model = LocalModel(ChatSession.from_pretrained(QUICKSTART / "model", device="cpu"), "quick start")
    limits = Limits(max_bytes=1 << 24, max_pixels=1 << 24)
    blocks = launch([model], limits, host="127.0.0.1", port=free_port(), block=False)
    try:
        photograph(blocks.local_url, IMAGE, out)
    finally:
        blocks.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
