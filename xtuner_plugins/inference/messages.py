"""A question as OpenAI's chat API takes it: images as data URLs, then the text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image


def data_url(image: Image.Image) -> str:
    """The image as a PNG in a data URL: no pixel changes on its way."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(image: Image.Image) -> dict[str, Any]:
    """The part of a message that holds an image."""
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def user_content(text: str, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """The content of a user's message: images first, then the text as it was typed.

    Servers put images before the text unless it holds their placeholder.
    """
    return [*map(image_part, images), {"type": "text", "text": text}]
