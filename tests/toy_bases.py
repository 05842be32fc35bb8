"""Tiny twins of the bases that configs start from: the same classes and formats, random weights."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.vision_towers import write_tower
from tests.weights.language_models import write_llm
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.planning.published import ENCODERS, LLMS, Base
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights import official
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.model_view import keys_of
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json

LARGE = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


def kind(base: Base) -> tuple[str, str, str | None, str, bool, bool]:
    """What makes two bases differ in code: classes, projector, template, a whole publication, and Flash's parts."""
    vision, name = ENCODERS[base.encoder], base.llm
    encoder = vision["model_type"] + ("_rms" if vision.get("norm_type") == "rms_norm" else "")
    llm = "internlm2" if "InternLM2" in name else "qwen" if name == "Qwen-7B" else LLMS[name]["model_type"]
    return encoder, llm, base.projector_type, base.template, bool(base.hub), base.flash


def write_tiny_base(base: Base, folder: Path) -> Path:
    """An official directory of the same kind as `base`, in the format in which that one is published."""
    encoder, llm, _, template, is_whole, flash = kind(base)
    vision, toy_llm = write_random_parts(folder / "parts", vision_overrides=LARGE if encoder.endswith("_rms") else None)
    if not encoder.startswith("intern_vit"):
        vision = folder / "tower"
        size = 126 if base.projector_type == "bilinear_mlp" else 112  # an odd grid, as so400m's at 384
        write_tower(vision, encoder.partition("_")[0], image_size=size)
    published_later = llm == "internlm2" and is_whole
    if llm != "qwen2" and not published_later:
        toy_llm = write_llm(llm, folder / "llm", toy_llm)
    if llm == "phi3":
        tokenizer = load_tokenizer(toy_llm, complete=False)
        tokenizer.add_tokens(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"], special_tokens=True)
        tokenizer.save_pretrained(toy_llm)
    options = dict(template=template, projector_type=base.projector_type, dtype="float32", flash=flash)
    build_base(vision, toy_llm, folder / "base", **options)
    return as_internlm2(folder / "base", folder / "published") if published_later else folder / "base"


def as_internlm2(base: Path, folder: Path) -> Path:
    """A copy of a base with its language model in InternLM2's published names, 4 query and 2 key/value heads."""
    shutil.copytree(base, folder)
    config = read_json(base / "config.json")
    llm = {k: v for k, v in config["llm_config"].items() if "sliding" not in k and k != "max_window_layers"}
    config["llm_config"] = {**llm, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    held = load_file(base / "model.safetensors")
    keep = {k: v for k, v in held.items() if not k.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))}
    stored = keys_of(official, config).to_theirs({k: MemoryTensor(v) for k, v in keep.items()})
    save_file({k: v.read() for k, v in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    for name in ("modeling_internlm2.py", "configuration_internlm2.py"):
        (folder / name).write_text("# the release's own code\n")
    return folder
