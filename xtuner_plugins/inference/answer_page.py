"""A page with questions, images and answers, to read through."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..datasets.errors import MediaError
from ..datasets.images.media import load_image
from ..html_page import render
from .drawing import with_boxes
from .questions import Question, Unusable

MOST_CARDS = 500  # about 15 kB each
SIDE = 360  # pixels of the longer side of an image on the page


def write_page(
    path: str | Path, model: str, questions: Sequence[Question], rows: dict[str, dict], unusable: Sequence[Unusable]
) -> None:
    """Writes the answers, in the order of the questions, with their images in the file itself.

    Args:
        path: The page.
        model: What answered.
        questions: All that were asked.
        rows: Answers by id, as in the answers' file.
        unusable: What could not be asked.
    """
    answered = [question for question in questions if question.id in rows]
    cards = [_card(question, rows[question.id]["answer"]) for question in answered[:MOST_CARDS]]
    text = render(
        Path(__file__).parent,
        "answers.html.jinja",
        model=model,
        num_answers=len(answered),
        cards=cards,
        unusable=[each.message for each in unusable],
    )
    Path(path).write_text(text, encoding="utf-8")


def _card(question: Question, answer: str) -> dict:
    # Boxes can only be about an image that is alone.
    draw = (lambda image: with_boxes(image, answer) or image) if len(question.paths) == 1 else None
    images = [small_image(path, name, draw) for path, name in zip(question.paths, question.images, strict=True)]
    return {"id": question.id, "question": question.text, "answer": answer, "images": images}


def small_image(path: str, name: str, draw: Callable[[Image.Image], Image.Image] | None = None) -> dict:
    """An image as a page shows it: `data` (JPEG in base64; None where it can't be read), `label`, `width`, `height`.

    Args:
        path: Its file.
        name: In the label.
        draw: What is drawn on it, before it is made smaller.
    """
    try:
        image = load_image(path)
    except MediaError as error:  # it was there when the question was answered
        return {"label": str(error), "data": None, "width": 0, "height": 0}
    label = f"{name}, {image.width}x{image.height}"
    image = draw(image) if draw else image
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"label": label, "data": data, "width": image.width, "height": image.height}
