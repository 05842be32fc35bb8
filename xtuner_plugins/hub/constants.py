"""Constants that training and every consumer of an official directory share."""

IGNORE_INDEX = -100  # label of a position that adds no loss

# Per RGB channel, of pixels in [0, 1]: what every consumer of the official format normalizes with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGE_PLACEHOLDER = "<image>"  # in a question's text
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")  # tokens in any text
ADDED_TOKENS = (*IMAGE_TOKENS, *GROUNDING_TOKENS)  # the nine that assembly appends to a vocabulary, in this order
