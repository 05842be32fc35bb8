"""The toy language: the words in which the toy pictures are asked about, and the tokenizer's corpus."""

import random

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The system prompt of the official InternVL 2.5 template: in the corpus so that it costs few tokens.
SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

ENGLISH = (
    "A picture is cut into tiles of one size, and a small copy of the whole picture comes last.",
    "The encoder sees every tile on its own and turns it into a row of features.",
    "The projector carries the features over to the width of the language model.",
    "Small text can be read only where the tiles keep the resolution of the picture.",
    "You are a helpful assistant. I don't know, but I'll look at the picture and tell you.",
    "Describe this picture. What is written here? How many shapes are there? Which colour is it?",
    "Please read the number in the sign and answer with the number only.",
)
CHINESE = (
    "一张图片被切成大小相同的小块，最后是整张图片的缩略图。",
    "请描述这张图片。图中有几个图形？它们是什么颜色？",
    "小字只有在分辨率足够时才能看清。",
    "请读出牌子上的数字，只回答数字。",
)
CODE = (
    "def count_tiles(width, height):\n    cols, rows = find_grid(width, height)\n    return cols * rows\n",
    "for tile in tiles:\n    features = encoder(tile)\n    print(features.shape)\n",
    'if __name__ == "__main__":\n    main()\n',
    '{"image": "0001.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}]}\n',
)


def corpus(num_sentences: int = 400, seed: int = 0) -> list[str]:
    """Texts of the toy language with some English, Chinese and code, for training the tokenizer.

    Args:
        num_sentences: How many random sentences about shapes, colours and numbers.
        seed: The same seed gives the same texts.
    """
    rng = random.Random(seed)
    texts = [SYSTEM_PROMPT, *ENGLISH, *CHINESE, *CODE, "system\n", "user\n", "assistant\n"] * 8
    # The compounds of `cells.in_words`, and its word for an empty cell: a token each.
    texts += [" ." + "".join(f" {colour}{shape}" for shape in SHAPES for colour in COLOURS)] * 4
    for _ in range(num_sentences):
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        number, word = rng.randrange(100, 1000), rng.choice(NUMBER_WORDS)
        texts.append(f"There are {word} {colour} {shape}s in the picture, and the sign says {number}.")
        texts.append(f"What number is on the {colour} sign? The {shape} beside it is {rng.choice(COLOURS)}.")
    return texts
