"""A question as OpenAI's chat API takes it."""

import base64
import io


def image_part(image):
    """The part of a message that holds an image: a PNG in a data URL, so that no pixel changes on its way."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }
