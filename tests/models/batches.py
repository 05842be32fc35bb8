"""Models on a toy base, batches for them, and what a step leaves behind."""

import torch
import torch.nn.functional as F
from peft import LoraConfig

from xtuner_plugins.datasets import collate
from xtuner_plugins.models import VisionLanguageModel

LORA = dict(type=LoraConfig, r=4, lora_alpha=8)
STARTED = LORA | dict(init_lora_weights=False)  # with adapters that change something
WHOLE = dict(freeze_llm=False, freeze_visual_encoder=False)


def build(base, kind=VisionLanguageModel, **settings):
    """A model in float32 where nothing else is said, with the same adapters each time."""
    torch.manual_seed(0)
    return kind(base=str(base), **{"dtype": "float32", **settings})


def make_samples(model, tiles_of=(2, 0, 1), length=90, seed=0, answers=(5, 5, 5, 5)):
    """Samples with so many tiles behind two tokens of text, each three tokens shorter than the one before it.

    So many tokens at the end have labels.
    """
    generator = torch.Generator().manual_seed(seed)
    size, made = model.tile_size, []
    for number, tiles in enumerate(tiles_of):
        ids = torch.randint(10, 200, (length - 3 * number,), generator=generator)
        ids[2 : 2 + model.num_image_token * tiles] = model.img_context_token_id
        labels = torch.full_like(ids, -100)
        labels[-answers[number] :] = ids[-answers[number] :]
        pixels = torch.randint(0, 256, (tiles, 3, size, size), dtype=torch.uint8, generator=generator)
        facts = {"num_tiles": tiles, "source": f"data.jsonl:{number + 1}"}
        made.append({"input_ids": ids, "labels": labels, "tiles": pixels, **facts})
    return made


def make_batch(model, *args, **options):
    """A padded batch of `make_samples`."""
    batch = collate(make_samples(model, *args, **options))
    return {name: value for name, value in batch.items() if name != "datasets"}


def pack(batch, padding=2):
    """The samples of a padded batch behind each other in one row, with so many tokens of padding at the end."""
    kept = batch["attention_mask"]
    return {
        "input_ids": F.pad(batch["input_ids"][kept], (0, padding))[None],
        "labels": F.pad(batch["labels"][kept], (0, padding), value=-100)[None],
        "cu_seqlens": F.pad(kept.sum(1).cumsum(0), (1, 0)).int(),
        **{name: batch[name] for name in ("tiles", "num_tiles", "sources")},
    }


def run(model, batch):
    return model(**model.data_preprocessor(batch), mode="loss")


def figures(model, outputs):
    """What a model's metrics are called, and their sums."""
    return dict(zip(model.metric_names, outputs["metrics"].tolist(), strict=True))


def backward(model, batch):
    """The loss of a batch, and the gradient of each parameter that has one."""
    model.zero_grad()
    loss = run(model, batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learn(model, batch, steps, optimizer=torch.optim.SGD, lr=0.1):
    """The losses of some steps on one batch."""
    optimizer, losses = optimizer([p for p in model.parameters() if p.requires_grad], lr=lr), []
    for _ in range(steps):
        losses.append(backward(model.train(), batch)[0].item())
        optimizer.step()
    return losses
