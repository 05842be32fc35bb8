"""The quick start's contact sheet: questions with their tiles and answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from xtuner_plugins.datasets.images.media import load_image
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.toy.evaluate import is_right
from xtuner_plugins.toy.images import TILE, font_file

INK, GREEN, RED, GRAY = (34, 34, 40), (24, 120, 48), (184, 32, 36), (120, 120, 128)
ROW, MARGIN = 250, 16  # px


def alternate(questions: Sequence[Mapping], kinds: Sequence[str], rows: int = 8) -> list[Mapping]:
    """Questions for a contact sheet, of these kinds and of others in turn, each about another image."""
    pools = [[q for q in questions if (q["kind"] in kinds) == among] for among in (True, False)]
    chosen: list[Mapping] = []
    for index in range(rows):
        seen = {q["image"] for q in chosen}
        chosen += next(([q] for q in pools[index % 2][3 * index :] if q["image"] not in seen), [])
    return chosen


def draw_contact_sheet(
    questions: Sequence[Mapping], answers: Mapping[str, Mapping[str, str]], images: str | Path, out: str | Path
) -> None:
    """A row per question: the image with its tile borders, the tiles as the encoder gets them, question and answers.

    Args:
        questions: As `evaluate.read_questions` gives them.
        answers: `{mode: {id: answer}}`.
        images: Folder of the images.
        out: PNG to write.
    """
    sheet = Image.new("RGB", (1130, ROW * len(questions) + MARGIN), (250, 250, 248))
    for index, question in enumerate(questions):
        top = index * ROW + MARGIN
        image = load_image(Path(images) / question["image"])
        tiling = DynamicTiling(max_tiles=6, tile_size=TILE)
        columns, rows, _ = tiling.grid(*image.size)
        sheet.paste(_with_borders(image, columns, rows), (MARGIN, top))
        _paste_tiles(sheet, tiling(image), columns, 2 * MARGIN + 336, top)
        _write(sheet, question, answers, 2 * MARGIN + 336 + 444, top)
    sheet.save(out)


def _with_borders(image: Image.Image, columns: int, rows: int) -> Image.Image:
    """The image with its tile borders, shrunk to fit 336 x 224 px."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for column in range(1, columns):
        x = image.width * column // columns
        pen.line((x, 0, x, image.height), fill="white")
    for row in range(1, rows):
        y = image.height * row // rows
        pen.line((0, y, image.width, y), fill="white")
    image.thumbnail((336, 224), Image.Resampling.LANCZOS)
    return image


def _paste_tiles(sheet: Image.Image, tiles, columns: int, left: int, top: int) -> None:
    """The tiles in their order with a gap between them, the thumbnail apart on the right."""
    rows = max(1, (len(tiles) - 1) // columns)
    side = min(100, 220 // rows - 6)
    for index, tile in enumerate(tiles):
        image = Image.fromarray(tile.permute(1, 2, 0).numpy())
        if index == len(tiles) - 1:
            sheet.paste(image, (left + 3 * 106, top))
        else:
            spot = (left + index % columns * (side + 6), top + index // columns * (side + 6))
            sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), spot)
    ImageDraw.Draw(sheet).text((left + 3 * 106, top + TILE + 4), "thumbnail", fill=GRAY, font=_font(12))


def _write(sheet: Image.Image, question: Mapping, answers: Mapping, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((left, top), question["question"].replace("<image>\n", ""), fill=INK, font=_font(16, bold=True))
    pen.text((left, top + 30), f"right answer: {question['answer']}", fill=INK, font=_font(15))
    for index, (mode, given) in enumerate(answers.items()):
        answer = given[question["id"]]
        color = GREEN if is_right(answer, question["answer"]) else RED
        pen.text((left, top + 60 + 26 * index), f"{mode}: {answer}", fill=color, font=_font(15))


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file("DejaVuSans-Bold" if bold else "DejaVuSans")), size)
