"""Opens an export without this project and writes its answers.

``verify.py`` runs it as a process of its own::

    python -I verify_probe.py EXPORT WORK

WORK holds ``cases.json`` and the images; ``probe.pt`` is written beside them. The process can't import this project:
tiles are made here by the published recipe with Pillow and torchvision, the model comes from transformers and, for the
official format, from the code in the export.
"""

import json
import sys
from pathlib import Path

sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402


def cut(path, size, least, most, thumbnail):
    """Normalized tiles float32 ``[T, 3, size, size]`` of an image: closest grid, row-major crops, thumbnail last."""
    image = Image.open(path).convert("RGB")
    grids = {
        (i, j)
        for n in range(least, most + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if least <= i * j <= most
    }
    best, best_gap = (1, 1), float("inf")
    ratio, area = image.width / image.height, image.width * image.height
    for columns, rows in sorted(grids, key=lambda g: g[0] * g[1]):
        gap = abs(ratio - columns / rows)
        if gap < best_gap or (gap == best_gap and area > 0.5 * size * size * columns * rows):
            best, best_gap = (columns, rows), min(gap, best_gap)
    columns, rows = best
    whole = image.resize((size * columns, size * rows))
    boxes = [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(rows) for x in range(columns)]
    tiles = [whole.crop(box) for box in boxes]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size)))
    to_input = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return torch.stack([to_input(tile) for tile in tiles])


def preprocessing(directory):
    """Tile limits and template in the export's own files; absent keys have the defaults of the official class."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "llava":
        size = config["vision_config"]["image_size"]
        return dict(tile_size=size, min_tiles=1, max_tiles=1, use_thumbnail=False, template=None)
    if config["model_type"] == "internvl":
        images = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
        limits = dict(min_tiles=images["min_patches"], max_tiles=images["max_patches"], use_thumbnail=True)
        return dict(tile_size=images["size"]["height"], template=None, **limits)
    most = config.get("max_dynamic_patch", 6) if config.get("dynamic_image_size", False) else 1
    return dict(
        tile_size=config.get("force_image_size") or config["vision_config"]["image_size"],
        min_tiles=min(config.get("min_dynamic_patch", 1), most),
        max_tiles=most,
        use_thumbnail=config.get("use_thumbnail", False),
        template=config.get("template"),
    )


def chat_ids(model, tokenizer, case, pixels, counts):
    """The ids that the export's own ``chat`` passes to its network for the case's question."""
    given, generate = [], model.generate

    def spy(*args, **kwargs):
        given.append(kwargs["input_ids"][0].tolist())
        return generate(*args, **kwargs)

    model.generate = spy
    try:
        options = dict(max_new_tokens=1, do_sample=False)
        model.chat(tokenizer, pixels, case["question"], options, num_patches_list=counts or None)
    finally:
        model.generate = generate
    return given[0]


def open_export(directory):
    """Returns (model, tokenizer, whether the format is the official one)."""
    import transformers
    from transformers import AutoModel, AutoTokenizer

    kind = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))["model_type"]
    options = dict(torch_dtype=torch.float32, output_loading_info=True)
    own_class = {"internvl": "InternVLForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}.get(kind)
    if own_class:
        model, info = getattr(transformers, own_class).from_pretrained(directory, **options)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    else:
        model, info = AutoModel.from_pretrained(directory, trust_remote_code=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[key]:
            raise SystemExit(f"the export does not load whole: {key} {sorted(map(str, info[key]))[:4]}")
    return model.eval(), tokenizer, own_class is None


@torch.no_grad()
def answer(model, tokenizer, official, case, pixels, counts):
    """Logits ``[S, V]`` of the prompt and the greedy answer's token ids."""
    ids = torch.tensor([case["ids"]])
    if tokenizer(case["prompt"]).input_ids != case["ids"]:
        raise SystemExit(f"case {case['name']}: the export's tokenizer gives other ids for the prompt")
    if model.config.model_type == "llava":  # its processor uses another token for images
        ids[ids == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")] = tokenizer.convert_tokens_to_ids("<image>")
    if official and chat_ids(model, tokenizer, case, pixels, counts) != case["ids"]:
        raise SystemExit(f"case {case['name']}: the export's chat prompts with other ids than the trained model")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if official:
        model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if not official:
        logits = model(pixel_values=pixels, **inputs).logits
    elif pixels is None:
        logits = model.language_model(**inputs).logits
    else:
        flags = torch.ones(len(pixels), 1, dtype=torch.long)
        logits = model(pixel_values=pixels, image_flags=flags, **inputs).logits
    options = dict(max_new_tokens=case["max_new_tokens"], do_sample=False, eos_token_id=case["eos"])
    made = model.generate(pixel_values=pixels, **inputs, **options)[0]
    if not official:  # their generate repeats the prompt
        made = made[len(case["ids"]) :]
    return logits[0], made.tolist()


def main(directory, work):
    """Answers the cases in ``work`` with the model in ``directory``."""
    task = json.loads((work / "cases.json").read_text(encoding="utf-8"))
    model, tokenizer, official = open_export(directory)
    said = preprocessing(Path(directory))
    results = {"preprocessing": said}
    limits = (said["tile_size"], said["min_tiles"], said["max_tiles"], said["use_thumbnail"])
    for case in task["cases"]:
        tiles = [cut(work / name, *limits) for name in case["images"]]
        counts = [len(part) for part in tiles]
        if counts != case["num_tiles"]:
            raise SystemExit(f"case {case['name']}: the export cuts {counts} tiles, the training {case['num_tiles']}")
        pixels = torch.cat(tiles) if tiles else None
        logits, made = answer(model, tokenizer, official, case, pixels, counts)
        results[case["name"]] = {"pixels": pixels, "logits": logits, "answer": made}
    torch.save(results, work / "probe.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
