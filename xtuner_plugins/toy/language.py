"""The toy language: what is asked about an image, the right answers, and the texts that the tokenizer learns from.

| kind          | example                              | needs the resolution |
|---------------|--------------------------------------|----------------------|
| number        | What number is on the sign? 47       | yes                  |
| number across | the same of a sign across two tiles  | yes                  |
| colour        | What colour is the star? blue        | no                   |
| count         | How many shapes are there? two       | no                   |
| presence      | Is there a circle? no                | no                   |

An image has one sign, so that "the sign" is clear. The words of a question never give its answer away: numbers, colors,
counts and presence are drawn at random.
"""

import random
from dataclasses import dataclass

from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM
from xtuner_plugins.toy.images import COLORS, SHAPES, Scene

ACROSS = "number across"  # two tiles: the kind of the number on a sign that crosses a tile border
KINDS = ("number", ACROSS, "colour", "count", "presence")
RESOLUTION_KINDS = ("number", ACROSS)
CAPTION_REQUESTS = ("Describe this picture.", "What does the picture show?")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


ENGLISH = (
    "A picture is cut into tiles of one size, and a small copy of the whole picture comes last.",
    "The encoder sees every tile on its own and turns it into a row of features.",
    "The projector carries the features over to the width of the language model.",
    "Small text can be read only where the tiles keep the resolution of the picture.",
    "You are a helpful assistant. I don't know, but I'll look at the picture and tell you.",
    "Describe this picture. What is written here? How many shapes are there? Which colour is it?",
    "Please read the number in the sign and answer with the number only.",
)
CHINESE = (
    "一张图片被切成大小相同的小块，最后是整张图片的缩略图。",
    "请描述这张图片。图中有几个图形？它们是什么颜色？",
    "小字只有在分辨率足够时才能看清。",
    "请读出牌子上的数字，只回答数字。",
)
CODE = (
    "def count_tiles(width, height):\n    cols, rows = find_grid(width, height)\n    return cols * rows\n",
    "for tile in tiles:\n    features = encoder(tile)\n    print(features.shape)\n",
    'if __name__ == "__main__":\n    main()\n',
    '{"image": "0001.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}]}\n',
)


def corpus() -> list[str]:
    """Texts of the toy language with some English, Chinese and code, for training the tokenizer; always the same."""
    rng = random.Random(0)
    texts = [INTERNVL2_5_SYSTEM, *ENGLISH, *CHINESE, *CODE, "system\n", "user\n", "assistant\n"] * 8
    # The compounds of `cells.in_words`, and its word for an empty cell: one token each.
    texts += [" ." + "".join(f" {color}{shape}" for shape in SHAPES for color in COLORS)] * 4
    for _ in range(400):
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        number, word = rng.randrange(100, 1000), rng.choice(NUMBER_WORDS)
        texts.append(f"There are {word} {color} {shape}s in the picture, and the sign says {number}.")
        texts.append(f"What number is on the {color} sign? The {shape} beside it is {rng.choice(COLORS)}.")
    return texts


@dataclass(frozen=True)
class Question:
    """One question about a scene, with its only right answer."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, rng: random.Random) -> list[Question]:
    """Each question about a scene once, in random order; presence is asked about one random kind of shape."""
    questions = [
        Question(ACROSS if sign.crosses else "number", "What number is on the sign?", sign.number)
        for sign in scene.signs
    ]
    questions += [Question("colour", f"What colour is the {shape.kind}?", shape.color) for shape in scene.shapes]
    questions.append(Question("count", "How many shapes are there?", NUMBER_WORDS[len(scene.shapes)]))
    kind = rng.choice(SHAPES)
    present = any(shape.kind == kind for shape in scene.shapes)
    questions.append(Question("presence", f"Is there a {kind}?", "yes" if present else "no"))
    rng.shuffle(questions)
    return questions


def describe(scene: Scene) -> str:
    """The caption: shapes in the order of `SHAPES`, then the sign."""
    parts = [f"a {shape.color} {shape.kind}" for shape in sorted(scene.shapes, key=lambda s: SHAPES.index(s.kind))]
    return ", ".join([*parts, *(f"a sign with {sign.number}" for sign in scene.signs)])
