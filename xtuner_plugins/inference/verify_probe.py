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


def limits(directory):
    """(tile size, fewest and most tiles, thumbnail) in the export's files, with the official class's defaults."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "llava":
        return config["vision_config"]["image_size"], 1, 1, False
    if config["model_type"] == "internvl":
        images = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
        return images["size"]["height"], images["min_patches"], images["max_patches"], True
    most = config.get("max_dynamic_patch", 6) if config.get("dynamic_image_size", False) else 1
    size = config.get("force_image_size") or config["vision_config"]["image_size"]
    return size, min(config.get("min_dynamic_patch", 1), most), most, config.get("use_thumbnail", False)


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


def by_chat(model, tokenizer, case, pixels):
    """The ids that the export's own ``chat`` passes to its network, and those of its chat template without images."""
    given, generate = {}, model.generate

    def spy(*args, **kwargs):
        given.update(kwargs)
        return generate(*args, **kwargs)

    model.generate = spy
    try:
        options = dict(max_new_tokens=1, do_sample=False)
        model.chat(tokenizer, pixels, case["question"], options, num_patches_list=case["num_tiles"] or None)
    finally:
        model.generate = generate
    facts = {"chat ids": given["input_ids"][0].tolist()}
    if pixels is None:
        messages = [{"role": "user", "content": case["question"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        facts["template ids"] = tokenizer(text, add_special_tokens=False).input_ids
    return facts


def by_processor(directory, case, images, own, theirs):
    """Ids and tiles of the export's processor; its image token ``theirs`` is written as ``own``."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    text = case["question"].replace("<image>\n", "")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = processor(text=prompt, images=[Image.open(path) for path in images] or None, return_tensors="pt")
    facts = {"processor ids": [own if n == theirs else n for n in made["input_ids"][0].tolist()]}
    return facts | ({"processor pixels": made["pixel_values"].float()} if images else {})


def logits_of(model, official, ids, pixels):
    """Logits ``[S, V]`` of a prompt with its answer."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not official:
        return model(pixel_values=pixels, **inputs).logits[0]
    if pixels is None:
        return model.language_model(**inputs).logits[0]
    flags = torch.ones(len(pixels), 1, dtype=torch.long)
    return model(pixel_values=pixels, image_flags=flags, **inputs).logits[0]


@torch.no_grad()
def main(directory, work):
    """Answers the cases in ``work`` with the model in ``directory``."""
    tasks = json.loads((work / "cases.json").read_text(encoding="utf-8"))
    model, tokenizer, official = open_export(directory)
    stops, tiling, results = model.generation_config.eos_token_id, limits(Path(directory)), {}
    own = theirs = model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if model.config.model_type == "llava":  # its processor uses another token for images
        theirs = model.config.image_token_index
    for case in tasks:
        paths = [work / name for name in case["images"]]
        tiles = [cut(path, *tiling) for path in paths]
        if [len(part) for part in tiles] != case["num_tiles"]:
            raise SystemExit(f"case {case['name']}: the export cuts other tiles than the training")
        pixels = torch.cat(tiles) if tiles else None
        facts = {"stops": stops if isinstance(stops, list) else [stops], "limits": list(tiling), "pixels": pixels}
        facts["tokenizer ids"] = tokenizer(case["prompt"]).input_ids
        if official:
            facts |= by_chat(model, tokenizer, case, pixels)
        else:
            facts |= by_processor(directory, case, paths, own, theirs)
        ids = torch.tensor([case["ids"] + case["answer"]])
        ids[ids == own] = theirs
        facts["logits"] = logits_of(model, official, ids, pixels)[len(case["ids"]) - 1 : -1].clone()
        results[case["name"]] = facts
    torch.save(results, work / "probe.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
