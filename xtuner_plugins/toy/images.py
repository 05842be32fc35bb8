r"""Generated images of walls with signs and shapes, and LLaVA-format questions about them.

An image is a whole number of tiles wide and high. Its soft background holds signs, each with a colored badge and a
two-digit number about 14 px high, and a few large shapes:

    +----------------+----------------+----------------+   tile border (112 px)
    |      ____      |  .----------.  |                |
    |     /    \     |  | (R) 4  7 |  |     /\         |   sign: badge and digits 28 px apart
    |     \____/     |  '----------'  |    /__\        |   shape: 40 px and more
    |                |                |                |
    +----------------+----------------+----------------+
    |  .----------.  |                |    ...         |

Cut into tiles, the digits keep their 14 px; in one tile for the whole image they shrink to a third and can't be read.
Colors, kinds and counts of the shapes can be recognized either way.

A sign lies within one tile or, where `crossing` asks for it, crosses the border of two tiles that stand side by side:
one or two of its three marks are in the left tile, the others in the right one. A simplification: the marks stay within
`JITTER` pixels of a grid of cells, so that no border cuts a digit itself.
"""

import importlib.util
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 112  # px
CELL = 28  # px: what one image token sees, 2 x 2 patches of 14
JITTER = 6  # px
DIGIT_SIZE = 20  # font size in px; a digit is about 14 px high

RGB = {
    "red": (206, 32, 38),
    "green": (38, 142, 52),
    "blue": (36, 84, 204),
    "yellow": (240, 206, 32),
    "purple": (142, 44, 168),
    "black": (26, 26, 30),
}
COLORS = tuple(RGB)
SHAPES = ("circle", "square", "triangle", "star")
FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Bold")


@dataclass(frozen=True)
class Sign:
    """A sign of three cells in a row: badge, digit, digit. `x`, `y` are the top left corner in px."""

    color: str
    number: str
    x: int
    y: int
    font: str

    @property
    def marks(self) -> list[tuple[str, int, int]]:
        """`(color or digit, center x, center y)` of the badge and the two digits, in px of the image."""
        middle = self.y + CELL // 2
        names = (self.color, *self.number)
        return [(name, self.x + CELL // 2 + i * CELL, middle) for i, name in enumerate(names)]

    @property
    def crosses(self) -> bool:
        """Whether its marks are in two tiles."""
        return len({x // TILE for _, x, _ in self.marks}) == 2


@dataclass(frozen=True)
class Shape:
    """A filled shape; `x`, `y` is the center in px, `size` its width and height."""

    kind: str
    color: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows; `background` seeds its soft texture."""

    width: int
    height: int
    signs: tuple[Sign, ...]
    shapes: tuple[Shape, ...]
    background: int


def make_scene(rng: random.Random, grid: tuple[int, int], *, crossing: float = 0.0) -> Scene:
    """A random scene of `grid` = (columns, rows) tiles with one to three shapes, and a sign where there is room.

    Shapes differ in kind, so that every question has one answer. They stand in different cells of a 4 x 4 grid over the
    whole image, and nothing covers anything else.

    Args:
        rng: Decides everything.
        grid: Columns and rows of tiles.
        crossing: Share of the signs that cross a tile border, where there is one beside the other.
    """
    columns, rows = grid
    width, height = columns * TILE, rows * TILE
    taken: list[tuple[int, int, int, int]] = []
    shapes, signs = [], []
    coarse_w, coarse_h = width // 4, height // 4
    size_limit = min(coarse_w, coarse_h)
    for kind in rng.sample(SHAPES, rng.randint(1, 3)):
        for _ in range(20):
            size = rng.randint(round(size_limit * 0.72), round(size_limit * 0.92))
            column, row = rng.randrange(4), rng.randrange(4)
            slack_x, slack_y = (coarse_w - size) // 4, (coarse_h - size) // 4
            x = column * coarse_w + coarse_w // 2 + rng.randint(-slack_x, slack_x)
            y = row * coarse_h + coarse_h // 2 + rng.randint(-slack_y, slack_y)
            cell = (column * coarse_w, row * coarse_h, (column + 1) * coarse_w, (row + 1) * coarse_h)
            if not any(_overlap(cell, box) for box in taken):
                taken.append(cell)
                shapes.append(Shape(kind, rng.choice(COLORS), x, y, size))
                break
    halves = [(shape, shape.size // 2 + 2) for shape in shapes]
    boxes = [(shape.x - half, shape.y - half, shape.x + half, shape.y + half) for shape, half in halves]
    # One sign, and one draw more where there are several tiles: the number of signs was drawn there once.
    (color,) = rng.sample(COLORS, rng.randint(1, 1) if columns * rows > 1 else 1)
    crosses = crossing and columns > 1 and rng.random() < crossing
    for _ in range(20):
        tile_x, tile_y = rng.randrange(columns) * TILE, rng.randrange(rows) * TILE
        left, top = tile_x + rng.randrange(2) * CELL, tile_y + rng.randrange(4) * CELL
        x = left + rng.randint(-JITTER if left > tile_x else 0, JITTER if left == tile_x else 0)
        if crosses:
            x = rng.randrange(1, columns) * TILE - rng.randint(1, 2) * CELL + rng.randint(-JITTER, JITTER)
        y = top + rng.randint(-JITTER if top > tile_y else 0, JITTER if top < tile_y + 3 * CELL else 0)
        if not any(_overlap((x, y, x + 3 * CELL, y + CELL), other) for other in boxes):
            signs.append(Sign(color, str(rng.randint(10, 99)), x, y, rng.choice(FONTS)))
            break
    return Scene(width, height, tuple(signs), tuple(shapes), rng.getrandbits(32))


def draw(scene: Scene) -> Image.Image:
    """Draws a scene as an RGB image of `scene.width` x `scene.height`; the same scene gives the same pixels."""
    rng = random.Random(scene.background)
    image = _background(rng, scene.width, scene.height)
    for shape in scene.shapes:
        mask = _shape_mask(shape.kind, shape.size)
        image.paste(_shade(rng, shape.color), (shape.x - shape.size // 2, shape.y - shape.size // 2), mask)
    for sign in scene.signs:
        image.paste((70, 70, 74), (sign.x + 1, sign.y + 3), _plate_mask())
        image.paste((246, 244, 238), (sign.x + 1, sign.y + 2), _plate_mask())
        for index, (name, x, y) in enumerate(sign.marks):
            if index == 0:
                image.paste(_shade(rng, name), (x - 9, y - 9), _shape_mask("circle", 18))
            else:
                mask = _digit_mask(name, sign.font)
                image.paste((24, 24, 28), (x - mask.width // 2, y - mask.height // 2), mask)
    return image


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shade(rng: random.Random, color: str) -> tuple[int, int, int]:
    return tuple(min(255, max(0, value + rng.randint(-14, 14))) for value in RGB[color])


def _background(rng: random.Random, width: int, height: int) -> Image.Image:
    """A few random muted colors, blown up to soft clouds."""
    base = [rng.randint(150, 205) for _ in range(3)]
    small = Image.new("RGB", (5, 4))
    small.putdata([tuple(value + rng.randint(-26, 26) for value in base) for _ in range(20)])
    return small.resize((width, height), Image.Resampling.BICUBIC)


@cache
def _shape_mask(kind: str, size: int) -> Image.Image:
    """An antialiased mask: drawn four times as large, then shrunk."""
    big = size * 4
    mask = Image.new("L", (big, big))
    pen = ImageDraw.Draw(mask)
    if kind == "circle":
        pen.ellipse((0, 0, big - 1, big - 1), fill="white")
    elif kind == "square":
        pen.rectangle((big * 0.06, big * 0.06, big * 0.94, big * 0.94), fill="white")
    elif kind == "triangle":
        pen.polygon([(big / 2, big * 0.04), (big * 0.98, big * 0.94), (big * 0.02, big * 0.94)], fill="white")
    else:  # a star
        corners = [(big * (0.21 if index % 2 else 0.5), math.pi * (index / 5 - 0.5)) for index in range(10)]
        points = [(big / 2 + radius * math.cos(angle), big / 2 + radius * math.sin(angle)) for radius, angle in corners]
        pen.polygon(points, fill="white")
    return mask.resize((size, size), Image.Resampling.BOX)


@cache
def _plate_mask() -> Image.Image:
    width, height = 3 * CELL - 2, CELL - 5
    mask = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), radius=20, fill="white")
    return mask.resize((width, height), Image.Resampling.BOX)


@cache
def _digit_mask(digit: str, font: str) -> Image.Image:
    typeface = ImageFont.truetype(str(font_file(font)), DIGIT_SIZE)
    left, top, right, bottom = typeface.getbbox(digit)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), digit, fill="white", font=typeface)
    return mask


def font_file(name: str) -> Path:
    """The DejaVu fonts that matplotlib ships, found without importing it."""
    package = Path(importlib.util.find_spec("matplotlib").origin).parent
    return package / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
