"""`chat` and `batch_chat`: what is prompted, and how answers, histories and images are handled."""

import pytest
import torch
from transformers import GenerationConfig

from xtuner_plugins.hub import get_conv_template

from .cases import TILE

SYSTEM = "<|im_start|>system\n" + get_conv_template("internvl2_5").system_message + "<|im_end|>\n"
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def tiles(count):
    return torch.randn(count, 3, TILE, TILE, generator=torch.Generator().manual_seed(count))


def image(count):
    return "<img>" + "<IMG_CONTEXT>" * (16 * count) + "</img>"


def user(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture()
def prompted(model, tokenizer, monkeypatch):
    """Collects the texts that reach `generate`, padding removed."""
    seen, generate = [], model.generate

    def record(**kwargs):
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            seen.append(tokenizer.decode(ids[mask.bool()]))
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", record)
    return seen


def test_where_images_go(model, tokenizer, prompted):
    for pixels, question, options, expected in (
        (tiles(3), "What is it?", {}, image(3) + "\nWhat is it?"),
        (tiles(1), "Look: <image> What is it?", {}, f"Look: {image(1)} What is it?"),
        (None, "Hello", {}, "Hello"),
        (tiles(3), "First <image> second <image>", {"num_patches_list": [1, 2]}, f"First {image(1)} second {image(2)}"),
    ):
        assert isinstance(model.chat(tokenizer, pixels, question, dict(GREEDY), **options), str)
        assert prompted.pop() == SYSTEM + user(expected)
    assert model.img_context_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")


def test_history(model, tokenizer, prompted):
    answer, history = model.chat(tokenizer, tiles(2), "What is it?", dict(GREEDY), return_history=True)
    assert history == [("<image>\nWhat is it?", answer)]
    second, longer = model.chat(tokenizer, tiles(2), "And why?", dict(GREEDY), history=history, return_history=True)
    first_turn = SYSTEM + user(image(2) + "\nWhat is it?") + answer + "<|im_end|>\n"
    assert prompted[1] == first_turn + user("And why?")
    assert longer == [*history, ("And why?", second)] and len(history) == 1


def test_only_questions_hold_images(model):
    history = [("Look <image>", "An <image>, I think"), ("Where?", "There")]
    prompt = model.build_prompt("<image> and <image>", [1, 2], history)
    expected = user(f"Look {image(1)}") + "An <image>, I think<|im_end|>\n" + user("Where?") + "There<|im_end|>\n"
    assert prompt == SYSTEM + expected + user(f"{image(2)} and <image>")


def test_system_message_is_read_at_call_time(model, tokenizer, prompted):
    model.system_message = "Be brief."
    model.chat(tokenizer, None, "Hello", dict(GREEDY))
    assert prompted == ["<|im_start|>system\nBe brief.<|im_end|>\n" + user("Hello")]


def test_the_stop_token_is_set_and_ends_the_answer(model, tokenizer, monkeypatch):
    options = dict(GREEDY)
    text = " It is blue. <|im_end|>\n<|im_start|>user more"
    ids = tokenizer(text, return_tensors="pt").input_ids
    monkeypatch.setattr(model, "generate", lambda **kwargs: ids)
    monkeypatch.setattr(tokenizer, "batch_decode", lambda ids, **kwargs: [text])
    assert model.chat(tokenizer, None, "Hello", options) == "It is blue."
    assert options == {**GREEDY, "eos_token_id": [tokenizer.convert_tokens_to_ids("<|im_end|>")]}


def test_chat_and_generate_stop_at_the_same_tokens(model, tokenizer, monkeypatch):
    """At those of `generation_config.json`, of which the template's is only one."""
    named = [tokenizer.convert_tokens_to_ids("<|im_end|>"), 5]
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=named), raising=False)
    seen = []

    def record(**kwargs):
        seen.append(kwargs["eos_token_id"])
        return torch.tensor([[5]])

    monkeypatch.setattr(model.language_model, "generate", record)
    model.chat(tokenizer, None, "Hello", dict(GREEDY))
    ids = tokenizer("Hello", return_tensors="pt").input_ids
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), eos_token_id=[7], **GREEDY)
    assert seen == [named, named, [7]]


def test_batch_equals_one_by_one(model, tokenizer, prompted):
    questions = ["What is it?", "Hello", "Why is this one so much longer than the others are?", "<image> or <image>?"]
    pixels, counts = tiles(6), [2, 0, 1, [1, 2]]
    answers = model.batch_chat(tokenizer, pixels, questions, dict(GREEDY), num_patches_list=counts)
    rows = ((pixels[:2], None), (None, None), (pixels[2:3], None), (pixels[3:], [1, 2]))
    alone = [
        model.chat(tokenizer, own, question, dict(GREEDY), num_patches_list=count)
        for question, (own, count) in zip(questions, rows, strict=True)
    ]
    assert answers == alone
    assert prompted[:4] == prompted[4:]


def test_batch_takes_features_in_place_of_pixels(model, tokenizer):
    pixels, questions = tiles(2), ["What is it?", "Hello", "Why?"]
    expected = model.batch_chat(tokenizer, pixels, questions, dict(GREEDY), num_patches_list=[1, 0, 1])
    features = model.extract_feature(pixels)
    options = {"num_patches_list": [1, 0, 1], "visual_features": features}
    assert model.batch_chat(tokenizer, None, questions, dict(GREEDY), **options) == expected
    with pytest.raises(ValueError, match="1 tiles, but num_patches_list"):
        model.batch_chat(tokenizer, None, questions, dict(GREEDY), **{**options, "visual_features": features[:1]})


def test_batch_leaves_the_tokenizer_alone_and_sets_the_stop_token(model, tokenizer):
    tokenizer.padding_side = "right"
    options = dict(GREEDY)
    model.batch_chat(tokenizer, tiles(2), ["a", "and b"], options, num_patches_list=[1, 1])
    assert tokenizer.padding_side == "right"
    assert options["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_what_is_refused(model, tokenizer):
    one, two = tiles(1), {"questions": ["a", "b"], "generation_config": dict(GREEDY)}
    ask = {"question": "<image> What is it?", "generation_config": dict(GREEDY)}
    for method, pixels, options, error, message in (
        ("chat", tiles(3), {**ask, "num_patches_list": [1, 1]}, ValueError, "3 tiles, but .* adds up to 2"),
        (
            "chat",
            tiles(2),
            {**ask, "num_patches_list": [1, 1]},
            ValueError,
            "16 image tokens .*, but 32 image features",
        ),
        ("batch_chat", one, {**two, "num_patches_list": [1]}, ValueError, "1 entries for 2 questions"),
        ("batch_chat", one, two, ValueError, "1 tiles, but num_patches_list"),
        ("batch_chat", None, {**two, "history": []}, NotImplementedError, "keeps no history"),
        ("batch_chat", None, {**two, "return_history": True}, NotImplementedError, "keeps no history"),
    ):
        with pytest.raises(error, match=message):
            getattr(model, method)(tokenizer, pixels, **options)


def test_a_tokenizer_without_the_image_tokens(model, tmp_path):
    from transformers import AutoTokenizer

    from xtuner_plugins.toy.tokenizer import build_tokenizer

    bare = AutoTokenizer.from_pretrained(build_tokenizer(tmp_path))
    with pytest.raises(ValueError, match="the tokenizer has no token '<img>'"):
        model.chat(bare, tiles(1), "Hello", dict(GREEDY))
