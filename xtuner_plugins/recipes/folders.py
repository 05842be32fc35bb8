"""What the README of each folder of `configs/` says, in both languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Folder:
    """A family of recipes.

    Attributes:
        title: heading, the same in both languages.
        text, text_zh: what the family is and what to know before starting.
    """

    title: str
    text: str
    text_zh: str


_SAME_SCHEDULE = (
    "Data, lengths, LoRA and schedule are those of XTuner's own configs for InternVL, whose names the leaves keep: one epoch "
    "of the LLaVA-1.5 instructions at a learning rate of 1e-6, adapters of rank 128. Released models follow instructions "
    "already; for your own data set `data_paths`, `image_folders` and a larger `lr` (1e-5 whole, 1e-4 with LoRA)."
)
_SAME_SCHEDULE_ZH = (
    "数据、长度、LoRA 和学习率计划与 XTuner 自带的 InternVL 配置相同，叶子也沿用它们的名字：LLaVA-1.5 指令数据一个 epoch，"
    "学习率 1e-6，适配器秩 128。发布的模型已会遵循指令；训练自己的数据时，请设置 `data_paths`、`image_folders` 和更大的 `lr`"
    "（全量 1e-5，LoRA 1e-4）。"
)

FOLDERS: dict[str, Folder] = {
    "siglip_qwen2_5": Folder(
        "SigLIP + Qwen2.5-0.5B",
        "A small model that trains on one GPU: SigLIP-so400m sees the whole image at 384 x 384 pixels, its 27 x 27 features "
        "are reduced bilinearly to 13 x 13 = 169 tokens, and two linear layers with a GELU between them project them. The "
        "fixed low resolution is its weakness: small print is lost. The `tiled` leaves cut large images into up to 6 tiles "
        "with a thumbnail, on a base of its own. Warm-up first, then export it, then one of the `sft` leaves.",
        "一块 GPU 就能训练的小模型：SigLIP-so400m 以 384 x 384 像素看整张图像，27 x 27 个特征经双线性插值缩到 13 x 13 = 169 个"
        "词元，再由两个线性层（中间是 GELU）投影。固定的低分辨率是它的弱点：小字看不清。`tiled` 叶子用自己的基座，把大图切成最多 "
        "6 个图块并附缩略图。先预热并导出，再运行某个 `sft` 叶子。",
    ),
    "clip_qwen": Folder(
        "CLIP or SigLIP + Qwen 7B",
        "Bilingual captions and detailed descriptions: LoRA of rank 128 on the LLM, the projector whole at a higher learning "
        "rate. Qwen-7B-Chat (the first Qwen) is read in Qwen2's form, so its `c_attn`, `w1` and `w2` are `q_proj`, `k_proj`, "
        "`v_proj`, `up_proj` and `gate_proj` in `lora_targets`.",
        "中英文描述与细节描述：LLM 上秩 128 的 LoRA，投影器整体训练且学习率更高。Qwen-7B-Chat（第一代 Qwen）按 Qwen2 的形式读取，"
        "因此 `lora_targets` 里的 `c_attn`、`w1`、`w2` 写作 `q_proj`、`k_proj`、`v_proj`、`up_proj`、`gate_proj`。",
    ),
    "llava_clip_qwen2_5": Folder(
        "LLaVA: CLIP ViT-L/14-336 + Qwen2.5",
        "The four ways of training a LLaVA: LoRA with the projector frozen, LoRA with the projector trained, everything but "
        "the encoder, everything. Checkpoints export with `--format llava` for `LlavaForConditionalGeneration` (a token "
        "`<image>`, the pad token and the processor's files are written with it), adapters with `--adapter-only`. With the "
        "projector frozen, start from a base whose projector has been trained: pass `--projector` to build_base_model.py.",
        "训练 LLaVA 的四种方式：冻结投影器的 LoRA、训练投影器的 LoRA、除编码器外全部训练、全部训练。检查点用 `--format llava` "
        "导出给 `LlavaForConditionalGeneration`（同时写出 `<image>` 词元、填充词元和处理器文件），适配器用 `--adapter-only` 导出。"
        "冻结投影器时，请从投影器已训练好的基座开始：给 build_base_model.py 传 `--projector`。",
    ),
    "internvl_v1_5": Folder("InternVL 1.5", _SAME_SCHEDULE, _SAME_SCHEDULE_ZH),
    "internvl_v2": Folder("InternVL 2", _SAME_SCHEDULE, _SAME_SCHEDULE_ZH),
    "internvl_v2_5": Folder("InternVL 2.5", _SAME_SCHEDULE, _SAME_SCHEDULE_ZH),
    "internvl_v3": Folder("InternVL 3", _SAME_SCHEDULE, _SAME_SCHEDULE_ZH),
    "internvl_v3_5": Folder(
        "InternVL 3.5",
        _SAME_SCHEDULE
        + " In the mixture of experts (30B-A3B) LoRA adapts attention alone, and the router's balancing loss "
        "is not part of the loss.",
        _SAME_SCHEDULE_ZH + "混合专家模型（30B-A3B）的 LoRA 只作用于注意力，损失不含路由器的均衡项。",
    ),
}
