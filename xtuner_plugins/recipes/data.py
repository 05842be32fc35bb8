"""Training data as the recipes name them."""

from __future__ import annotations

from .recipe import Data

LLAVA_PRETRAIN = Data(
    "LLaVA-Pretrain 558K (blip_laion_cc_sbu_558k.json and its images)",
    ("data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",),
    ("data/LLaVA-Pretrain/images",),
    num_samples=558_000,
)
LLAVA_665K = Data(
    "LLaVA-1.5 instructions (llava_v1_5_mix665k.json and its image folders under one root)",
    ("data/LLaVA-Instruct/llava_v1_5_mix665k.json",),
    ("data/LLaVA-Instruct/images",),
    num_samples=665_000,
)
CC3M_595K = Data(
    "LLaVA-CC3M-Pretrain-595K (chat.json and its images)",
    ("data/LLaVA-CC3M-Pretrain-595K/chat.json",),
    ("data/LLaVA-CC3M-Pretrain-595K/images",),
    num_samples=595_000,
)
LLAVA_150K = Data(
    "LLaVA-Instruct-150K on COCO train2017",
    ("data/LLaVA-Instruct-150K/llava_instruct_150k.json",),
    ("data/coco/train2017",),
    num_samples=158_000,
)
LLAVA_80K = Data(
    "LLaVA-Instruct-80K on COCO train2017",
    ("data/LLaVA-Instruct-150K/llava_instruct_80k.json",),
    ("data/coco/train2017",),
    num_samples=80_000,
)
CHINESE_PRETRAIN = Data(
    "LinkSoul's Chinese-LLaVA-Vision-Instructions: LLaVA-CC3M-Pretrain-595K with captions in Chinese",
    ("data/Chinese-LLaVA-Vision-Instructions/LLaVA-CC3M-Pretrain-595K/chat-translated.json",),
    ("data/LLaVA-CC3M-Pretrain-595K/images",),
    num_samples=595_000,
)
CHINESE_SFT = Data(
    "LinkSoul's Chinese-LLaVA-Vision-Instructions: LLaVA-Instruct-150K in Chinese, on COCO train2017",
    ("data/Chinese-LLaVA-Vision-Instructions/LLaVA-Instruct-150K/translated/llava_instruct_150k.json",),
    ("data/coco/train2017",),
    num_samples=158_000,
)
CAPTIONS = Data(
    "COCO detail_23k and complex_reasoning_77k, AI Challenger captions (Chinese)",
    (
        "data/LLaVA-Instruct-150K/detail_23k.json",
        "data/LLaVA-Instruct-150K/complex_reasoning_77k.json",
        "data/ai_challenger/train.jsonl",
    ),
    ("data/coco/train2017", "data/coco/train2017", "data/ai_challenger/images"),
)
MINE = Data(
    "data/mine/train.jsonl, one LLaVA-style record per line (docs/data.md); images in data/mine/images",
    ("data/mine/train.jsonl",),
    ("data/mine/images",),
)
MY_PAIRS = Data(
    "data/mine/pairs.jsonl, one prompt with a chosen and a rejected answer per line (docs/preference.md)",
    ("data/mine/pairs.jsonl",),
    ("data/mine/images",),
)
TOY = Data(
    "generated images with questions, half of which need the resolution",
    ("work_dirs/quickstart/data/train.jsonl",),
    ("work_dirs/quickstart/data/images",),
)
