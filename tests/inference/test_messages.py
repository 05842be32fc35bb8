"""Images cross to a server without a change."""

import base64
import io

import numpy as np
from PIL import Image

from xtuner_plugins.inference.messages import user_content


def test_images_then_text():
    image = Image.effect_noise((30, 20), 90).convert("RGB")
    first, second, text = user_content("What?", [image, image])
    assert first == second and text == {"type": "text", "text": "What?"}
    head, _, data = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(image))
