"""Pre-trains the toy encoder and the toy LLM, each on its own as the real ones were: minutes on one core each.

    python -m xtuner_plugins.toy.pretrain vision --out DIR     # a standalone InternViT directory
    python -m xtuner_plugins.toy.pretrain llm --out DIR        # a Qwen2 directory

The encoder learns to tell what each cell of a tile shows (dense supervision; its linear head is
discarded). The LLM never sees an image: it reads scenes in words and answers questions about them.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.hub.configuration_intern_vit import InternVisionConfig
from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM
from xtuner_plugins.hub.modeling_intern_vit import InternVisionModel
from xtuner_plugins.models.preprocessor import TilePreprocessor
from xtuner_plugins.toy.cells import HEADS, IGNORE, SIDE, cell_labels, in_words
from xtuner_plugins.toy.data import CROSSING, make_parser
from xtuner_plugins.toy.images import CELL, COLORS, FONTS, JITTER, TILE, Scene, Sign, draw, make_scene
from xtuner_plugins.toy.language import CAPTION_REQUESTS, ask, describe
from xtuner_plugins.toy.models import VISION_CONFIG, llm_config, write_dir, write_llm_dir
from xtuner_plugins.toy.tokenizer import build_tokenizer

VISION = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "torch_dtype": "float32"}
LLM = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "max_window_layers": 2}
LLM["torch_dtype"] = "float32"
EOS = "<|im_end|>\n"
VISION_STEPS, LLM_STEPS = 800, 800
VISION_BATCH, LLM_BATCH = 32, 24
VISION_LR, LLM_LR = 2e-3, 3e-3

LossOf = Callable[[float], tuple[torch.Tensor, float]]


def pretrain_vision(out_dir: str | Path, *, steps: int = VISION_STEPS, seed: int = 0) -> Path:
    """Trains the tiny InternViT to tell what each cell shows, and writes its standalone directory.

    Args:
        out_dir: Gets `config.json` and `model.safetensors`.
        steps: Optimizer steps, of `VISION_BATCH` tiles each.
        seed: Random seed of weights and images.
    """
    torch.manual_seed(seed)
    config = {**VISION_CONFIG, **VISION}
    model = InternVisionModel(InternVisionConfig(**config)).train()
    _init_encoder(model)
    width = config["hidden_size"]
    head = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, sum(HEADS.values())))
    preprocess = TilePreprocessor()
    # Most cells are empty: without the weight the first hundred steps learn to say so and nothing else.
    weights = [torch.tensor([0.3] + [1.0] * (classes - 1)) for classes in HEADS.values()]
    stream = _tiles(random.Random(f"vision-{seed}"))

    def loss_of(progress: float) -> tuple[torch.Tensor, float]:
        tiles, labels = (torch.stack(part) for part in zip(*(next(stream) for _ in range(VISION_BATCH)), strict=True))
        logits = head(_cells(model, preprocess.normalize(tiles))).split(list(HEADS.values()), dim=-1)
        pairs = [(part.flatten(0, 1), labels[:, i].flatten(), weights[i]) for i, part in enumerate(logits)]
        losses = [F.cross_entropy(*pair, ignore_index=IGNORE) for pair in pairs]
        found = logits[0].argmax(-1)[labels[:, 0] > 0] == labels[:, 0][labels[:, 0] > 0]
        return sum(losses), found.float().mean().item()

    _optimize([*model.parameters(), *head.parameters()], loss_of, steps, VISION_LR, "vision")
    return write_dir(out_dir, config, model.state_dict())


def _init_encoder(model: InternVisionModel) -> None:
    """Sets a higher layer scale and smaller positions than the published initial values, which suit 24 layers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1", "ls2")):
                parameter.fill_(0.5)
            elif name.endswith(("class_embedding", "position_embedding")):
                parameter.normal_(0, 0.02)


def _cells(model: InternVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """Features of the cells [T, 16, 4 D]: what the pixel shuffle makes of the last layer."""
    features = model(pixels).last_hidden_state[:, 1:]
    num_tiles, _, width = features.shape
    grid = features.view(num_tiles, SIDE, 2, SIDE, 2, width).transpose(2, 3)
    return grid.reshape(num_tiles, SIDE * SIDE, 4 * width)


def _tiles(rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tiles uint8 [3, 112, 112] with their labels [4, 16]: 80 % are full of signs, the others are cut from scenes."""
    while True:
        if rng.random() < 0.8:
            scene = _crowded(rng)
        else:
            scene = make_scene(rng, rng.choice(((3, 2), (2, 3), (2, 2), (1, 1), (1, 1))), crossing=CROSSING["train"])
        tiles = DynamicTiling(max_tiles=6, tile_size=TILE)(draw(scene))
        pairs = list(zip(tiles, cell_labels(scene), strict=True))
        # From a large image, one tile and the thumbnail, which alone shows whole shapes.
        yield from pairs if len(pairs) == 1 else (pairs[-1], rng.choice(pairs[:-1]))


def _crowded(rng: random.Random) -> Scene:
    """One tile with up to four signs, one below the other: more digits to learn from than in a scene."""
    signs: list[Sign] = []
    for row in range(SIDE):
        if rng.random() < 0.25:
            continue
        right = rng.random() < 0.5
        x = right * CELL + rng.randint(-JITTER if right else 0, 0 if right else JITTER)
        y = row * CELL + rng.randint(-JITTER if row else 0, JITTER if row < SIDE - 1 else 0)
        if signs:
            y = max(y, signs[-1].y + CELL)
        if y <= min(row * CELL + JITTER, TILE - CELL):
            signs.append(Sign(rng.choice(COLORS), str(rng.randint(10, 99)), x, y, rng.choice(FONTS)))
    return Scene(TILE, TILE, tuple(signs), (), rng.getrandbits(32))


def pretrain_llm(out_dir: str | Path, *, steps: int = LLM_STEPS, seed: int = 0) -> Path:
    """Trains the tiny Qwen2 on scenes in words with questions and answers, and writes its directory.

    For the first 60 % of the steps the texts are short, nearly without empty cells; then they are up to as long as an
    image's tokens. Looking up what follows a word takes seconds to learn from short texts, and minutes from long ones.

    Args:
        out_dir: Gets tokenizer, configs and weights.
        steps: Optimizer steps, of `LLM_BATCH` texts each, half as many towards the end.
        seed: Random seed of weights and texts.
    """
    torch.manual_seed(seed)
    build_tokenizer(out_dir)
    tokenizer = AutoTokenizer.from_pretrained(out_dir)
    # Large initial weights: with 0.02 the answers stay near uniform many times longer.
    config = llm_config(out_dir, {**LLM, "initializer_range": 0.05})
    model = Qwen2ForCausalLM(Qwen2Config(**config)).train()
    rng = random.Random(f"llm-{seed}")
    ids_of = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    digits = torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789")))

    def loss_of(progress: float) -> tuple[torch.Tensor, float]:
        size = LLM_BATCH if progress < 0.6 else LLM_BATCH // 2
        samples = [_encode(ids_of, *_dialogue(rng, progress)) for _ in range(size)]
        # Nothing looks back at padding, so no mask is needed.
        padding = zip(zip(*samples, strict=True), (tokenizer.pad_token_id, IGNORE), strict=True)
        input_ids, labels = (pad_sequence(list(map(torch.tensor, part)), True, value) for part, value in padding)
        hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
        asked = labels[:, 1:] != IGNORE
        targets = labels[:, 1:][asked]
        logits = model.lm_head(hidden[asked])
        is_digit = torch.isin(targets, digits)
        right = (logits.argmax(-1) == targets)[is_digit]
        return F.cross_entropy(logits, targets), right.float().mean().item()

    _optimize(list(model.parameters()), loss_of, steps, LLM_LR, "llm")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return write_llm_dir(out_dir, config, tensors)


def _dialogue(rng: random.Random, progress: float) -> tuple[str | None, str, list[tuple[str, str]]]:
    """System prompt, a scene in words, and turns about it; longer and more varied as `progress` goes to 1."""
    scene = make_scene(rng, rng.choice(((3, 2), (2, 3), (2, 2), (1, 1))), crossing=CROSSING["train"])
    questions = [(q.text, q.answer) for q in ask(scene, rng)]
    if progress < 0.6:
        return None, in_words(scene, rng, 0.05 * rng.random()), questions
    text = in_words(scene, rng, rng.random())
    if rng.random() < 0.3:
        questions = [(rng.choice(CAPTION_REQUESTS), describe(scene))]
    return INTERNVL2_5_SYSTEM, text, questions


def _encode(
    ids_of: Callable[[str], list[int]], system: str | None, text: str, turns: list[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a dialogue in the conversation template."""
    user, assistant = "<|im_start|>user\n", "<|im_start|>assistant\n"
    parts = [(f"<|im_start|>system\n{system}{EOS}", False)] if system else []
    for index, (question, answer) in enumerate(turns):
        asked = [user, text, f"\n{question}{EOS}{assistant}"] if index == 0 else [f"{user}{question}{EOS}{assistant}"]
        parts += [*((words, False) for words in asked), (answer + EOS.strip(), True), ("\n", False)]
    found = [(ids_of(words), is_answer) for words, is_answer in parts]
    labels = [ids if is_answer else [IGNORE] * len(ids) for ids, is_answer in found]
    return [token for ids, _ in found for token in ids], [label for part in labels for label in part]


def _optimize(parameters: list[nn.Parameter], loss_of: LossOf, steps: int, lr: float, name: str) -> None:
    """AdamW with warm-up and cosine; prints a line of progress after `name` every 100 steps.

    Args:
        parameters: What trains.
        loss_of: Draws a batch for a progress from 0 to 1; returns its loss and the share of digits that are right.
        steps: Of the optimizer.
        lr: The highest learning rate, after 50 steps.
        name: Of the part.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.95))
    begin, shares = time.perf_counter(), []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / (steps + 1)))
        loss, share = loss_of((step - 1) / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        shares.append(share)
        if step % 100 == 0 or step == steps:
            recent = sum(shares[-50:]) / len(shares[-50:])
            spent = time.perf_counter() - begin
            said = f"step {step}/{steps}  loss {loss.item():.3f}  digits right {recent:.1%}  {spent:.0f} s"
            print(f"[{name}] {said}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("part", choices=["vision", "llm"])
    args = parser.parse_args(argv)
    train, steps = {"vision": (pretrain_vision, VISION_STEPS), "llm": (pretrain_llm, LLM_STEPS)}[args.part]
    path = train(args.out, steps=max(2, round(steps * args.scale)), seed=args.seed)
    print(f"[{args.part}] wrote {path}", flush=True)


if __name__ == "__main__":
    main()
