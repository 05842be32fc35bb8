"""What the measurements of the data side share: images, a base, the published path of an image, the comparison."""

import json
import random
import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling

SIZES = [(640, 480), (480, 640), (1024, 768), (336, 336), (1920, 1080), (2480, 3508)]
RULE = DynamicTiling()
NINE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CONFIG = {
    "model_type": "internvl_chat",
    "template": "internvl2_5",
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "max_dynamic_patch": 12,
    "vision_config": {"model_type": "intern_vit_6b", "patch_size": 14},
    "llm_config": {"architectures": ["Qwen2ForCausalLM"]},
}


def compare(name: str, peer, ours: dict, rounds: int, clock=time.perf_counter) -> None:
    """Time peer and ours in turn, `rounds` times, and print how many times faster ours is."""
    times = {key: [] for key in ["peer", *ours]}
    for _ in range(rounds):
        for key, work in {"peer": peer, **ours}.items():
            start = clock()
            work()
            times[key].append(clock() - start)
    print(f"\n{name}: peer {statistics.median(times['peer']):.3f} s")
    for key in ours:
        ratios = sorted(peer / own for peer, own in zip(times["peer"], times[key], strict=True))
        print(
            f"  {key:<28} {statistics.median(times[key]):8.3f} s   {ratios[0]:6.2f} / "
            f"{statistics.median(ratios):6.2f} / {ratios[-1]:6.2f} x"
        )


def make_images(folder: Path) -> list[str]:
    from skimage import data

    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    paths = []
    for number, size in enumerate(SIZES):
        path = folder / f"{size[0]}x{size[1]}.jpg"
        Image.fromarray(photos[number % 4]).resize(size, Image.Resampling.LANCZOS).save(path, quality=90)
        paths.append(str(path))
    return paths


def make_other_images(folder: Path) -> list[str]:
    """Other images than those of `make_images`: COCO's sizes, a phone's photograph, 4:4:4 and strong compression,
    scanned pages and generated images in PNG."""
    from skimage import data

    from xtuner_plugins.toy.images import draw, make_scene

    photos = [data.immunohistochemistry(), data.hubble_deep_field(), data.cat(), data.coffee()[::-1]]
    jpegs = [
        ((640, 427), 75, "4:2:0"),
        ((500, 375), 85, "4:2:0"),
        ((427, 640), 92, "4:4:4"),
        ((612, 612), 75, "4:2:0"),
        ((800, 600), 95, "4:4:4"),
        ((1280, 720), 60, "4:2:0"),
        ((3024, 4032), 85, "4:2:0"),
    ]
    images = {}
    for number, (size, quality, subsampling) in enumerate(jpegs):
        image = Image.fromarray(photos[number % 4]).resize(size, Image.Resampling.BICUBIC)
        images[f"{number}.jpg"] = image, {"quality": quality, "subsampling": subsampling}
    for name, size in (("page.png", (1240, 1754)), ("text.png", (1000, 400))):
        images[name] = Image.fromarray(data.page() if name == "page.png" else data.text()).resize(size), {}
    for number, grid in enumerate(((3, 2), (1, 4))):
        images[f"scene{number}.png"] = draw(make_scene(random.Random(number), grid)), {}
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [str(folder / name) for name in images]


def make_base(folder: Path) -> str:
    from transformers import AutoTokenizer

    from xtuner_plugins.toy.tokenizer import build_tokenizer

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(NINE, special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def real_base(tokenizer: str | None, folder: Path) -> str:
    """A base directory with the given tokenizer, or with the toy's."""
    if tokenizer is None:
        return make_base(folder)
    from transformers import AutoTokenizer

    hub = AutoTokenizer.from_pretrained(tokenizer)
    hub.add_tokens(NINE, special_tokens=True)
    hub.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


class Published:
    """The published path from a file to normalized float32 tiles."""

    def __init__(self):
        from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

        self.transform = Compose(
            [
                Resize((448, 448), interpolation=InterpolationMode.BICUBIC),
                ToTensor(),
                Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __call__(self, path: str) -> torch.Tensor:
        image = Image.open(path).convert("RGB")
        cols, rows, _ = RULE.grid(*image.size)
        resized = image.resize((448 * cols, 448 * rows))
        crops = [
            resized.crop((448 * (i % cols), 448 * (i // cols), 448 * (i % cols + 1), 448 * (i // cols + 1)))
            for i in range(cols * rows)
        ]
        if len(crops) != 1:
            crops.append(image.resize((448, 448)))
        return torch.stack([self.transform(crop) for crop in crops])


def make_kinds(folder: Path) -> list[str]:
    """A photograph of the web, a screen in PNG, a turned photograph of 12 MP with a sensor's noise, and gray scans."""
    import numpy as np
    from skimage import data

    def photo(size: tuple[int, int], noise: float) -> Image.Image:
        pixels = np.asarray(Image.fromarray(data.coffee()).resize(size, Image.Resampling.BICUBIC))
        return Image.fromarray(
            (pixels + np.random.default_rng(0).normal(0, noise, pixels.shape)).clip(0, 255).astype("u1")
        )

    screen = np.full((1080, 1920, 3), 245, np.uint8)
    screen[:80], screen[80:, :300] = (32, 44, 68), (225, 229, 236)
    text = np.asarray(Image.fromarray(data.text()).resize((760, 300)))[..., None]
    for top in range(120, 780, 320):
        screen[top : top + 300, 340:1100] = screen[top : top + 300, 1130:1890] = text
    page = Image.fromarray(data.page()).resize((1654, 2339), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((640, 480), 3.0).save(folder / "web.jpg", quality=85)
    Image.fromarray(screen).save(folder / "screen.png")
    photo((4032, 3024), 3.0).save(folder / "phone.jpg", quality=90)
    photo((4032, 3024), 3.0).save(folder / "phone-turned.jpg", quality=90, exif=exif)
    page.save(folder / "scan.jpg", quality=85)
    page.save(folder / "scan.png")
    return [str(path) for path in sorted(folder.glob("*.*g"))]


INPUTS = {"jpegs": make_images, "others": make_other_images, "kinds": make_kinds}
