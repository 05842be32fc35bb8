"""(imported) images, a base, lengths like LLaVA-665k's, the published path of an image, and the comparison."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xtuner_plugins.datasets.images.tiling import DynamicTiling

SIZES = [(640, 480), (480, 640), (1024, 768), (336, 336), (1920, 1080), (2480, 3508)]
RULE = DynamicTiling()
NINE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CONFIG = dict(model_type="internvl_chat", template="internvl2_5", force_image_size=448, downsample_ratio=0.5)
CONFIG |= dict(dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=12)
CONFIG |= dict(vision_config={"model_type": "intern_vit_6b", "patch_size": 14})
CONFIG |= dict(llm_config={"architectures": ["Qwen2ForCausalLM"]})


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


def make_base(folder: Path) -> str:
    from transformers import AutoTokenizer

    from xtuner_plugins.toy.tokenizer import build_tokenizer

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(NINE, special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


class Published:
    """The published path from a file to normalized float32 tiles."""

    def __init__(self):
        from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

        normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        resize = Resize((448, 448), interpolation=InterpolationMode.BICUBIC)
        self.transform = Compose([resize, ToTensor(), normalize])

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


INPUTS = {"jpegs": make_images, "kinds": make_kinds}


def like_llava_665k(num: int, max_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and tiles in the shares of llava_v1_5_mix665k: text only, COCO-like images, book covers, scenes."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(4, num, p=np.array([40.7, 522.4, 80.0, 22.0]) / 665.1)
    coco = [(640, 480)] * 5 + [(480, 640)] * 2 + [(640, 427)] * 4 + [(640, 640), (500, 375), (612, 612), (427, 640)]
    tokens, tiles = np.zeros(num, np.int64), np.zeros(num, np.int64)
    rule, medians, spreads = DynamicTiling(max_tiles=max_tiles), (812, 181, 148, 110), (0.7, 0.6, 0.4, 0.4)
    for row, kind in enumerate(kinds):
        tokens[row] = np.clip(rng.lognormal(np.log(medians[kind]), spreads[kind]), 60, 4000)
        if kind == 0:
            continue
        if kind == 1:
            size = coco[rng.integers(len(coco))] if rng.random() < 0.75 else tuple(map(int, rng.integers(300, 641, 2)))
        elif kind == 2:
            size = int(rng.integers(200, 400)), int(rng.integers(380, 500))
        else:
            size = 1024, int(rng.integers(600, 1025))
        tiles[row] = rule.grid(*size).num_tiles
        tokens[row] += 256 * tiles[row] + 2
    return tokens, tiles
