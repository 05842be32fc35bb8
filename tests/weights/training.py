"""Training checkpoints for the tests: a real training model, disturbed, saved as the strategies save it."""

import re
from pathlib import Path

import torch
from peft import LoraConfig

from xtuner_plugins.export.trained import read_training_config
from xtuner_plugins.models.rows import make_row
from xtuner_plugins.models.vlm import VisionLanguageModel
from xtuner_plugins.weights import record

LORA = dict(type=LoraConfig, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
VISION_LORA = dict(type=LoraConfig, r=2, lora_alpha=4, target_modules=["qkv", "fc1"])

RSLORA = {**LORA, "lora_alpha": 64, "use_rslora": True}
SETTINGS = {
    "projector": dict(),
    "full": dict(freeze_llm=False, freeze_visual_encoder=False),
    "lora": dict(llm_lora=LORA),
    "both_loras": dict(llm_lora=LORA, visual_encoder_lora=VISION_LORA),
    "last_layer": dict(visual_encoder_last_layers=1, train_head=True),
}


def make_model(base, seed=0, **settings) -> VisionLanguageModel:
    """A training model whose trainable parameters differ clearly from the base's (B of LoRA is no longer zero)."""
    model = VisionLanguageModel(base=str(base), dtype="float32", gradient_checkpointing=False, **settings)
    model.made_with = {"base": str(base), **settings}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    return model.eval()


def write_config(path: Path, base, **settings) -> Path:
    """A training config as a user writes it; only what the exporter reads."""
    fields = re.sub(r"<class '[\w.]*\b(\w+)'>", r"\1", repr({"base": str(base), **settings}))
    imports = "from peft import LoraConfig\nfrom xtuner_plugins.models.vlm import VisionLanguageModel\n"
    path.write_text(f"{imports}\nmodel = dict(type=VisionLanguageModel, **{fields})\n")
    return path


def record_of(base, **settings) -> dict:
    """The record of a run with these settings of its model."""
    model = record.plain({"type": VisionLanguageModel, **settings}, fill=True)
    steps = dict.fromkeys(record.STEPS)
    return {"base": record.base_facts(base), "data": [], "settings": {"model": model}, "steps": steps, "versions": {}}


def save_pth(model, path: Path, config: Path | None = None, *, state: dict | None = None, **others) -> Path:
    """A checkpoint of MMEngine's, with the record of a run of ``config`` (None: of what `make_model` was given)."""
    settings = read_training_config(config).model if config else model.made_with
    kept = record_of(**{k: v for k, v in dict.items(settings) if k != "type"})
    state = model.state_dict() if state is None else state
    torch.save({"state_dict": state, "meta": {"iter": 1, "epoch": 0}, record.KEY: kept, **others}, path)
    return path


def chat_inputs(model, seed=0):
    """Token ids with the image tokens of two tiles, and the tiles: ``(pixel_values, input_ids, image_flags)``."""
    generator, side = torch.Generator().manual_seed(seed), model.config.force_image_size
    pixels = torch.randn(2, 3, side, side, generator=generator)
    text = torch.randint(0, 500, (1, 12), generator=generator)
    image = torch.full((1, 2 * model.num_image_token), model.img_context_token_id)
    return pixels, torch.cat([text[:, :6], image, text[:, 6:]], 1), torch.ones(2, 1, dtype=torch.long)


@torch.no_grad()
def logits(model, inputs):
    """Logits ``[1, S, V]`` of a chat model."""
    pixels, ids, flags = inputs
    model.img_context_token_id = int(ids[0, 6])  # see `chat_inputs`
    mask = torch.ones_like(ids)
    return model(pixel_values=pixels, input_ids=ids, attention_mask=mask, image_flags=flags).logits


def training_inputs(model, ids, pixels=None) -> dict:
    """What the training model's forward takes for one row of ids, all of them labels; without tiles by default."""
    if pixels is None:
        pixels = torch.zeros(0, 3, model.tile_size, model.tile_size)
    row = make_row({"input_ids": ids, "labels": ids}, model.img_context_token_id)
    return {"row": row, "pixel_values": pixels}
