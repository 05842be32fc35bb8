"""Makes web_demo.png and web_demo_zh-CN.png: the web page over a toy model, photographed by headless Chromium.

    python docs/images/make_web_demo.py docs/images

The image is the astronaut that scikit-image brings. It needs Chromium and a font with Chinese (on Debian:
apt-get install chromium fonts-noto-cjk).
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUESTIONS = {"en-US": "What is in the image?", "zh-CN": "图中有什么？"}
FILES = {"en-US": "web_demo.png", "zh-CN": "web_demo_zh-CN.png"}
NEW_TOKENS = 16  # random weights never end an answer


def write_photo(path: Path) -> None:
    """An image of 3:2, six tiles and a thumbnail."""
    import skimage.data

    Image.open(Path(skimage.data.__file__).parent / "astronaut.png").convert("RGB").crop((0, 0, 512, 341)).save(path)


def photograph(url: str, photo: Path, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    from xtuner_plugins.serving.demo_texts import TEXTS

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--hide-scrollbars"])
        for number, (language, question) in enumerate(QUESTIONS.items()):
            page = window.new_page(locale=language, viewport={"width": 1280, "height": 1020})
            page.goto(url)
            page.click("button.label-wrap")  # opens the settings
            page.fill(f"input[type=number][aria-label$='{TEXTS['max_new_tokens'][number]}']", str(NEW_TOKENS))
            page.click("button.label-wrap")
            page.set_input_files("#ask input[type=file]", photo)
            page.wait_for_selector("#ask .thumbnail-item")
            page.fill("#ask textarea", question)
            page.press("#ask textarea", "Enter")
            page.wait_for_selector("#chat-0 .bot.message:not(.pending) >> text=/\\S/")
            page.wait_for_selector("#seen:has-text('112 x 112')")
            page.mouse.move(0, 0)
            page.wait_for_timeout(5000)  # the rest of the answer, and what moves
            page.screenshot(path=out / FILES[language])
            page.close()
            image = Image.open(out / FILES[language]).convert("RGB")
            image.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(out / FILES[language], optimize=True)
        window.close()


def main(out: Path) -> None:
    from xtuner_plugins.checkpoints.assembly.base import build_base
    from xtuner_plugins.inference.session import ChatSession
    from xtuner_plugins.processes import free_port
    from xtuner_plugins.serving.demo import launch
    from xtuner_plugins.serving.demo_media import Limits
    from xtuner_plugins.serving.demo_models import LocalModel
    from xtuner_plugins.toy.models import write_random_parts

    with tempfile.TemporaryDirectory() as folder:
        vision, llm = write_random_parts(folder)
        build_base(vision, llm, Path(folder, "toy"), dtype="float32")
        write_photo(Path(folder, "photo.png"))
        model = LocalModel(ChatSession.from_pretrained(Path(folder, "toy"), device="cpu"), "toy")
        limits = Limits(max_bytes=1 << 24, max_pixels=1 << 24)
        blocks = launch([model], limits, host="127.0.0.1", port=free_port(), block=False)
        try:
            photograph(blocks.local_url, Path(folder, "photo.png"), out)
        finally:
            blocks.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
