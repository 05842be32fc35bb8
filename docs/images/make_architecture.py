"""Writes docs/images/architecture.svg and its Chinese sibling: the network, what each stage trains, and what comes out.

python docs/images/make_architecture.py [OUT_DIR]
"""

import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 960, 424
INK, SOFT, LINE, PAPER = "#1c2330", "#5a6676", "#9aa5b3", "#ffffff"
VISION, PROJECTOR, LLM, TEXT = "#dbe7ff", "#ffe3b8", "#cdeed6", "#eef1f5"
FONT = "system-ui, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"

# (English, Chinese)
WORDS = {
    "image": ("image", "图片"),
    "tiles": ("up to 12 tiles + thumbnail", "最多 12 个图块 + 缩略图"),
    "encoder": ("vision encoder", "视觉编码器"),
    "encoders": ("InternViT, CLIP, SigLIP", "InternViT、CLIP、SigLIP"),
    "shuffle": ("pixel shuffle", "pixel shuffle"),
    "shuffled": ("1024 patches to 256 tokens", "1024 个图像片到 256 个 token"),
    "projector": ("projector", "投影层"),
    "mlp": ("MLP", "MLP"),
    "llm": ("LLM", "大语言模型"),
    "llms": ("Qwen, Llama, ...", "Qwen、Llama 等"),
    "question": ("question", "问题"),
    "tokenizer": ("tokenizer", "分词器"),
    "answer": ("answer", "回答"),
    "trains": ("trains", "训练"),
    "frozen": ("frozen", "冻结"),
    "lora": ("LoRA", "LoRA"),
    "exported": (
        "An export is an official directory: transformers, vLLM, SGLang and lmdeploy read it; "
        "llama.cpp after --format gguf",
        "导出得到官方格式的目录：transformers、vLLM、SGLang 和 lmdeploy 可直接读取，"
        "llama.cpp 需先用 --format gguf 转换",
    ),
}
STAGES = {  # encoder, projector, LLM
    "pretrain_mlp": ("frozen", "trains", "frozen"),
    "pretrain_vit_mlp": ("trains", "trains", "frozen"),
    "finetune_full, finetune_packed": ("frozen", "trains", "trains"),
    "finetune_lora, finetune_qlora": ("frozen", "trains", "lora"),
}
# Left edge and width; the stages' cells stand below the parts.
COLUMNS = {"encoder": (314, 132), "projector": (602, 112), "llm": (744, 108)}


def text(x: float, y: float, words: str, size: int = 14, fill: str = INK, anchor: str = "middle", **more: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    words = escape(words, quote=False)
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{extra}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = LINE, rx: int = 8) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx}" fill="{fill}" stroke="{stroke}"/>'
    )


def part(x: float, width: float, y: float, height: float, fill: str, title: str, below: str = "") -> list[str]:
    middle = x + width / 2
    out = [box(x, y, width, height, fill), text(middle, y + height / 2 + (-3 if below else 5), title, 15)]
    return [*out, text(middle, y + height / 2 + 15, below, 11, SOFT)] if below else out


def arrow(*points: tuple[float, float]) -> str:
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {path}" fill="none" stroke="{SOFT}" stroke-width="1.6" marker-end="url(#tip)"/>'


def draw(language: int) -> str:
    """The image as SVG; 0 is English, 1 Chinese."""
    say = {key: pair[language] for key, pair in WORDS.items()}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{SOFT}"/></marker></defs>',
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, PAPER, "#dde2e8", 12),
        *_image_and_tiles(say),
        *part(*COLUMNS["encoder"], 50, 64, VISION, say["encoder"], say["encoders"]),
        *part(466, 116, 50, 64, TEXT, say["shuffle"]),
        text(524, 132, say["shuffled"], 11, SOFT),
        *part(*COLUMNS["projector"], 50, 64, PROJECTOR, say["projector"], say["mlp"]),
        *part(*COLUMNS["llm"], 50, 126, LLM, say["llm"], say["llms"]),
        text(914, 117, say["answer"], 15),
        *part(24, 104, 145, 36, TEXT, say["question"]),
        *part(*COLUMNS["encoder"], 145, 36, TEXT, say["tokenizer"]),
        arrow((128, 82), (164, 82)),
        arrow((290, 82), (312, 82)),
        arrow((446, 82), (464, 82)),
        arrow((582, 82), (600, 82)),
        arrow((714, 82), (742, 82)),
        arrow((128, 163), (312, 163)),
        arrow((446, 163), (742, 163)),
        arrow((852, 112), (882, 112)),
        *_stages(say),
        text(WIDTH / 2, HEIGHT - 20, say["exported"], 13, SOFT),
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _image_and_tiles(say: dict[str, str]) -> list[str]:
    """A wide image, and its grid of 3 x 2 tiles with the thumbnail."""
    out = [box(24, 48, 104, 68, VISION, rx=4), *_landscape(24, 48, 104, 68), text(76, 134, say["image"], 12, SOFT)]
    for row in range(2):
        for column in range(3):
            out.append(box(168 + column * 29, 52 + row * 29, 27, 27, VISION, rx=2))
    out += [box(262, 66, 27, 27, VISION, rx=2), *_landscape(262, 66, 27, 27)]
    return [*out, text(228, 134, say["tiles"], 12, SOFT)]


def _landscape(x: float, y: float, width: float, height: float) -> list[str]:
    """A hill and a sun."""
    hill = (
        f"M {x + 2:g} {y + height - 2:g} L {x + width * 0.38:g} {y + height * 0.35:g} "
        f"L {x + width * 0.62:g} {y + height * 0.7:g} L {x + width * 0.75:g} {y + height * 0.55:g} "
        f"L {x + width - 2:g} {y + height - 2:g} z"
    )
    sun = f'<circle cx="{x + width * 0.78:g}" cy="{y + height * 0.26:g}" r="{height * 0.12:g}" fill="#f4b942"/>'
    return [f'<path d="{hill}" fill="#7fa2e0"/>', sun]


def _stages(say: dict[str, str]) -> list[str]:
    """One row per recipe: what trains, below the part that it is about."""
    fills = {"trains": ("#2f9e56", "#ffffff"), "lora": ("#bfe6cb", INK), "frozen": ("#eef1f5", SOFT)}
    out = []
    for number, (name, states) in enumerate(STAGES.items()):
        y = 212 + number * 42
        out.append(text(24, y + 19, name, 14, anchor="start", font_family="ui-monospace, monospace"))
        for (left, width), state in zip(COLUMNS.values(), states, strict=True):
            fill, ink = fills[state]
            out.append(box(left, y, width, 28, fill, fill, 6))
            out.append(text(left + width / 2, y + 19, say[state], 13, ink))
    return out


def main(folder: str | Path = Path(__file__).parent) -> None:
    for language, name in enumerate(("architecture.svg", "architecture_zh-CN.svg")):
        Path(folder, name).write_text(draw(language), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
