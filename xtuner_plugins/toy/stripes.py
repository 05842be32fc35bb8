r"""A task that a tiny model learns in half a minute on a CPU: squares with fine stripes, for the notebooks.

    +------------------+    224 x 224 px: 2 x 2 tiles of 112 px and a thumbnail
    |     +--------+   |
    |     ||||||||||   |    What colour is the square?      red       one tile is enough
    |     ||||||||||   |    Which way do the stripes run?   down      needs the resolution
    |     +--------+   |
    +------------------+    stripes: 2 px in the color, 2 px white

In one tile for the whole image the stripes melt into a paler color. A third of the training images are that small
already, so the model has seen them; they are asked about the color only.
"""

import json
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from xtuner_plugins.datasets import MultimodalDataset, collate
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.toy.data import messages
from xtuner_plugins.toy.images import RGB, TILE
from xtuner_plugins.toy.models import write_random_parts

COLORS = ("red", "green", "blue", "yellow")
WAYS = ("down", "across")
QUESTIONS = {"colour": "What colour is the square?", "stripes": "Which way do the stripes run?"}
SIDE, STRIPE = 2 * TILE, 2  # px: of the image; of one stripe
SMALL_SHARE = 0.2
COUNT = 400  # images


def draw(color: str, way: str, rng: random.Random) -> Image.Image:
    """A striped square of half the image's width, anywhere on a plain background: RGB, `SIDE` x `SIDE`."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(150, 220) for _ in range(3)))
    left, top = (rng.randint(8, TILE - 8) for _ in range(2))
    pen = ImageDraw.Draw(image)
    pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill="white")
    for start in range(0, TILE, 2 * STRIPE):
        end = start + STRIPE - 1
        box = (start, 0, end, TILE - 1) if way == "down" else (0, start, TILE - 1, end)
        pen.rectangle((left + box[0], top + box[1], left + box[2], top + box[3]), fill=RGB[color])
    return image


def write_data(root: str | Path, count: int = COUNT) -> Path:
    """Writes images and an annotation file in LLaVA format, always the same.

    Args:
        root: Gets `train.jsonl`, one conversation per image, and `images/`.
        count: Images.

    Returns:
        The annotation file.
    """
    images, path = Path(root) / "images", Path(root) / "train.jsonl"
    images.mkdir(parents=True, exist_ok=True)
    rng, lines = random.Random("train-0"), []
    for index in range(count):
        answers = {"colour": rng.choice(COLORS), "stripes": rng.choice(WAYS)}
        image, kinds, name = draw(answers["colour"], answers["stripes"], rng), list(answers), f"train_{index:03d}.png"
        rng.shuffle(kinds)
        if rng.random() < SMALL_SHARE:
            image, kinds = image.resize((TILE, TILE), Image.Resampling.BICUBIC), ["colour"]
        image.save(images / name)
        turns = messages([(QUESTIONS[kind], answers[kind]) for kind in kinds])
        lines.append(json.dumps({"image": name, "conversations": turns}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_trained_base(root: str | Path, *, steps: int = 100) -> Path:
    """A base of toy parts that answers both questions, trained here without MMEngine's runner; replaces an earlier one.

    Args:
        root: Gets `parts/`, `data/` and `base/`.
        steps: Optimizer steps of 16 samples.

    Returns:
        The base's directory.
    """
    root = Path(root)
    base, float32 = root / "base", {"torch_dtype": "float32"}
    parts = write_random_parts(root / "parts", vision_overrides=float32, llm_overrides=float32)
    build_base(*parts, base, max_tiles=4, dtype="float32", force=True)
    data = str(write_data(root / "data"))
    dataset = MultimodalDataset(str(base), [data], [str(root / "data/images")], max_length=512)
    torch.manual_seed(0)
    model = VisionLanguageModel(str(base), freeze_llm=False, dtype="float32", gradient_checkpointing=False).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    rng = random.Random("order-0")
    for _ in range(steps):
        batch = collate([dataset[index] for index in rng.sample(range(len(dataset)), 16)])
        loss = model(**model.data_preprocessor(batch, True))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    weights = {name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base
