"""What is asked about a generated image, and the right answers.

| kind     | example                              | needs the resolution |
|----------|--------------------------------------|----------------------|
| number   | What number is on the sign? 47       | yes                  |
| colour   | What colour is the star? blue        | no                   |
| count    | How many shapes are there? two       | no                   |
| presence | Is there a circle? no                | no                   |

An image has one sign, so that "the sign" is clear. Nothing in a question's words gives the answer away: numbers,
colours, counts and presence are drawn by lot.
"""

import random
from dataclasses import dataclass

from xtuner_plugins.toy.images import Scene
from xtuner_plugins.toy.language import COLOURS, NUMBER_WORDS, SHAPES

KINDS = ("number", "colour", "count", "presence")
RESOLUTION_KINDS = ("number",)
CAPTION_REQUESTS = ("Describe this picture.", "What does the picture show?")


@dataclass(frozen=True)
class Question:
    """One question about a scene, with its only right answer."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, rng: random.Random) -> list[Question]:
    """Every question about a scene once, in random order; presence for one kind of shape drawn by lot."""
    questions = [Question("number", "What number is on the sign?", sign.number) for sign in scene.signs]
    questions += [Question("colour", f"What colour is the {shape.kind}?", shape.colour) for shape in scene.shapes]
    questions.append(Question("count", "How many shapes are there?", NUMBER_WORDS[len(scene.shapes)]))
    kind = rng.choice(SHAPES)
    present = any(shape.kind == kind for shape in scene.shapes)
    questions.append(Question("presence", f"Is there a {kind}?", "yes" if present else "no"))
    rng.shuffle(questions)
    return questions


def describe(scene: Scene) -> str:
    """The caption: shapes, then signs, each in the order of the toy language's lists."""
    parts = [f"a {shape.colour} {shape.kind}" for shape in sorted(scene.shapes, key=lambda s: SHAPES.index(s.kind))]
    parts += [f"a sign with {sign.number}" for sign in sorted(scene.signs, key=lambda s: COLOURS.index(s.colour))]
    return ", ".join(parts)
