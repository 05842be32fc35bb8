"""Makes docs/images/check_data.png: the checker's page over a small mixture, photographed by headless Chromium.

    python docs/images/make_check_data.py OUT_DIR [--screenshot docs/images/check_data.png]

The images are those that scikit-image brings. A screenshot needs Chromium and a font with Chinese (on Debian:
apt-get install chromium fonts-noto-cjk).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BASE = {  # tiles of 448 px, 256 tokens each, as the released models
    "model_type": "internvl_chat",
    "template": "internvl2_5",
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "vision_config": {"patch_size": 14, "image_size": 448},
    "llm_config": {"model_type": "qwen2"},
}
TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


def talk(*texts: str, **more) -> dict:
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {**more, "conversations": turns}


def write_base(folder: Path) -> None:
    """What the data side reads of a model: config.json and a tokenizer."""
    from transformers import AutoTokenizer

    from xtuner_plugins.toy.tokenizer import build_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(BASE))


def write_images(folder: Path) -> None:
    import av
    import skimage.data

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("chelsea", "coffee", "astronaut", "rocket", "page", "motorcycle_left", "motorcycle_right"):
        source = Path(skimage.data.__file__).parent
        (path,) = [path for path in source.glob(f"{name}.*") if path.suffix in (".png", ".jpg")]
        Image.open(path).convert("RGB").save(folder / f"{name}.jpg", quality=92)
    rocket = Image.open(folder / "rocket.jpg").resize((320, 214))
    with av.open(str(folder / "launch.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 214, "yuv420p"
        for step in range(40):  # the rocket rises
            shifted = np.roll(np.asarray(rocket), 30 - 2 * step, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        container.mux(stream.encode())


def write_records(folder: Path) -> None:
    where = "<ref>the cup</ref><box>[[165, 65, 480, 345]]</box>"
    photos = [
        talk("<image>\nWhat animal is it?", "A cat, looking to the side.", image="chelsea.jpg"),
        talk("Where is <ref>the cup</ref>?", where, image="coffee.jpg", boxes="pixel", width=600, height=400),
    ]
    chinese = [
        talk("<image>\n请读出图中第一行文字。", "第一行是 “Region-based segmentation”。", image="page.jpg"),
        talk("<image>\n图中的人是谁?", "一位宇航员。", "衣服是什么颜色?", "橙色,胸前有徽章。", image="astronaut.jpg"),
        talk("用一句话说明什么是卷积。", "卷积是用一个小窗口在输入上滑动并做加权求和的运算。"),
    ]
    several = [
        talk(
            "Left eye: <image>\nRight eye: <image>\nWhich was taken further to the right?",
            "The second: the motorcycle stands further left in it.",
            image=["motorcycle_left.jpg", "motorcycle_right.jpg"],
        ),
        talk("<video>\nWhat happens?", "A rocket takes off and rises out of the image.", video="launch.mp4"),
    ]
    wrong = [
        talk("<image>\nWhat is it?", "A dog.", image="dog.jpg"),
        talk("Where?", "<box>[[10, 10, 700, 200]]</box>", image="coffee.jpg", boxes="pixel", width=600, height=400),
        talk("<image>\n<image>\n有什么不同?", "没有。", image="rocket.jpg"),
    ]
    files = {
        "photos.jsonl": photos * 8,
        "chinese.json": chinese * 4,
        "several.jsonl": several + wrong,
    }
    for name, records in files.items():
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        text = "[" + ",\n".join(lines) + "]" if name.endswith(".json") else "\n".join(lines)
        (folder / name).write_text(text, encoding="utf-8")


def photograph(page: Path, image: Path, width: int = 1240, height: int = 3560, *options: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: apt-get install chromium fonts-noto-cjk")
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", *options]
    command += [f"--window-size={width},{height}", f"--screenshot={image}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    photo = Image.open(image).convert("RGB")
    photo.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(image, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--screenshot", type=Path)
    args = parser.parse_args()
    write_base(args.out / "base")
    write_images(args.out / "images")
    write_records(args.out)
    inputs = ["several.jsonl", "photos.jsonl", "chinese.json", "--image-folder", "images", "--base", "base"]
    command = [sys.executable, str(ROOT / "tools/check_data.py"), *inputs, "--html", "check.html"]
    status = subprocess.run([*command, "--cards", "6", "--workers", "2"], cwd=args.out).returncode
    if status != 1:  # three records are wrong on purpose
        sys.exit(f"the checker's status is {status}")
    if args.screenshot:
        photograph(args.out / "check.html", args.screenshot)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
