"""Constants that training and every consumer of an official directory share."""

IGNORE_INDEX = -100  # label of a position that adds no loss

# Per RGB channel, of pixels in [0, 1]: what every consumer of the official format normalizes with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGE_PLACEHOLDER = "<image>"  # in a question's text
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")  # tokens in any text
ADDED_TOKENS = (*IMAGE_TOKENS, *GROUNDING_TOKENS)  # the nine that assembly appends to a vocabulary, in this order

PROJECTOR_TYPES = ("pixel_shuffle_mlp", "mlp", "bilinear_mlp")


def token_grid(side, patch_size, downsample_ratio, projector_type=None):
    """Side of the grid of image tokens of a tile; `ValueError` where patches can't be merged.

    Args:
        side: Of the tile, in pixels.
        patch_size: Side of a patch in pixels; pixels beyond the last whole patch are not seen.
        downsample_ratio: As in `InternVLChatConfig`.
        projector_type: As in `InternVLChatConfig`; `None` is the first of `PROJECTOR_TYPES`.
    """
    patches = side // patch_size
    if projector_type == "bilinear_mlp":
        return int(patches * downsample_ratio)
    r = int(1 / downsample_ratio)
    if patches % r:
        raise ValueError(f"a tile of {side} pixels has {patches} x {patches} patches, which can't be merged {r} x {r}")
    return patches // r


def projector_input_width(vision_width, downsample_ratio, projector_type=None):
    """Width of the vectors that `mlp1` takes; the pixel shuffle puts merged patches side by side."""
    if projector_type == "bilinear_mlp":
        return vision_width
    return vision_width * int(1 / downsample_ratio) ** 2
