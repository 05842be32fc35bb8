"""A page with questions, images and answers, to read through."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

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
    images = [_image(path, name, answer, len(question.paths) == 1) for path, name in _named(question)]
    return {"id": question.id, "question": question.text, "answer": answer, "images": images}


def _named(question: Question) -> list[tuple[str, str]]:
    return list(zip(question.paths, question.images, strict=True))


def _image(path: str, name: str, answer: str, only_one: bool) -> dict:
    """An image as the page shows it: with the answer's boxes where they can only be about this one."""
    try:
        image = load_image(path)
    except MediaError as error:  # it was there when the question was answered
        return {"label": str(error), "data": None, "width": 0, "height": 0}
    image = (with_boxes(image, answer) if only_one else None) or image
    label = f"{name}, {image.width}x{image.height}"
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"label": label, "data": data, "width": image.width, "height": image.height}
