"""`chat` and `batch_chat`: what is prompted, and how answers, histories and images are handled."""

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from xtuner_plugins.hub.conversation import get_conv_template
from xtuner_plugins.toy.tokenizer import build_tokenizer

from .cases import make_config, make_model, make_pixels

SYSTEM = "<|im_start|>system\n" + get_conv_template("internvl2_5").system_message + "<|im_end|>\n"
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def image(count):
    return "<img>" + "<IMG_CONTEXT>" * (16 * count) + "</img>"


def user(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def tokenizer(toy_base):
    return AutoTokenizer.from_pretrained(toy_base)


@pytest.fixture
def model(tokenizer):
    return make_model(make_config(vocab_size=len(tokenizer)))


@pytest.fixture
def prompted(model, tokenizer, monkeypatch):
    """Collects the texts that reach `generate`, padding removed."""
    seen, generate = [], model.generate

    def record(**kwargs):
        rows = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
        seen.extend(tokenizer.decode(ids[mask]) for ids, mask in rows)
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", record)
    return seen


def test_prompts_and_histories(model, tokenizer, prompted, capsys):
    """Where images go: only questions hold some."""
    for pixels, question, options, expected in (
        (make_pixels(3), "What is it?", {}, image(3) + "\nWhat is it?"),
        (make_pixels(1), "Look: <image> What is it?", {}, f"Look: {image(1)} What is it?"),
        (None, "Hello", {}, "Hello"),
        (make_pixels(3), "First <image> or <image>", {"num_patches_list": [1, 2]}, f"First {image(1)} or {image(2)}"),
    ):
        assert isinstance(model.chat(tokenizer, pixels, question, {**GREEDY}, **options), str)
        assert prompted.pop() == SYSTEM + user(expected)
    answer, history = model.chat(tokenizer, make_pixels(2), "What is it?", {**GREEDY}, return_history=True)
    assert history == [("<image>\nWhat is it?", answer)]
    options = dict(history=history, return_history=True, verbose=True)
    second, longer = model.chat(tokenizer, make_pixels(2), "And why?", {**GREEDY}, **options)
    assert capsys.readouterr().out == f"And why?\n{second}\n"
    first_turn = SYSTEM + user(image(2) + "\nWhat is it?") + answer + "<|im_end|>\n"
    assert prompted.pop() == first_turn + user("And why?")
    assert longer == [*history, ("And why?", second)] and len(history) == 1
    past = [("Look <image>", "An <image>, I think"), ("Where?", "There")]
    expected = user(f"Look {image(1)}") + "An <image>, I think<|im_end|>\n" + user("Where?") + "There<|im_end|>\n"
    ids = model.build_prompt_ids(tokenizer, "<image> and <image>", [1, 2], past)
    assert tokenizer.decode(ids) == SYSTEM + expected + user(f"{image(2)} and <image>")
    model.system_message = "Be brief."  # read at call time
    model.chat(tokenizer, None, "Hello", {**GREEDY})
    assert prompted.pop() == "<|im_start|>system\nBe brief.<|im_end|>\n" + user("Hello")


def test_the_stop_token_is_set_and_ends_the_answer(model, tokenizer, monkeypatch):
    """`chat` and `generate` stop at all of `generation_config.json`, of which the template's is only one."""
    options, text, seen = {**GREEDY}, " It is blue. <|im_end|>\n<|im_start|>user more", []
    ids = tokenizer(text, return_tensors="pt").input_ids
    monkeypatch.setattr(model.language_model, "generate", lambda **given: seen.append(given) or ids)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "batch_decode", lambda ids, **kwargs: [text])
        assert model.chat(tokenizer, None, "Hello", options) == "It is blue."
    assert options == {**GREEDY, "eos_token_id": [stop]}
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=[stop, 5]), raising=False)
    model.chat(tokenizer, None, "Hello", {**GREEDY})
    for own in ({}, {"eos_token_id": [7]}):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **own)
    assert [given["eos_token_id"] for given in seen] == [[stop], [stop, 5], [stop, 5], [7]]
    assert all(given["use_cache"] is True and given["inputs"].shape == (1, 0) for given in seen)


def test_batch_equals_one_by_one(model, tokenizer, prompted, capsys):
    """Also of features in place of pixels, and whatever side a tokenizer pads."""
    tokenizer.padding_side = "right"
    questions = ["What is it?", "Hello", "Why is this one so much longer than the others are?", "<image> or <image>?"]
    pixels, counts = make_pixels(6), [2, 0, 1, [1, 2]]
    answers = model.batch_chat(tokenizer, pixels, questions, {**GREEDY}, num_patches_list=counts, verbose=True)
    together = capsys.readouterr().out
    rows = zip(questions, (pixels[:2], None, pixels[2:3], pixels[3:]), (None, None, None, [1, 2]), strict=True)
    alone = [model.chat(tokenizer, own, asked, {**GREEDY}, None, False, count, True) for asked, own, count in rows]
    assert answers == alone and prompted[:4] == prompted[4:] and tokenizer.padding_side == "right"
    assert together == capsys.readouterr().out != ""
    tokenizer.pad_token = None  # then the stop token pads
    options = {"num_patches_list": counts, "visual_features": model.extract_feature(pixels)}
    assert model.batch_chat(tokenizer, None, questions, {**GREEDY}, **options) == alone
    assert model.batch_chat(tokenizer, pixels[:2], questions[:1], {**GREEDY}) == alone[:1]
    assert model.batch_chat(tokenizer, None, ["Hello"] * 2, {**GREEDY}) == [alone[1]] * 2
    assert model.chat(tokenizer, None, "Hello", {**GREEDY}) == alone[1] and capsys.readouterr().out == ""


def test_what_is_refused(model, tokenizer, tmp_path):
    ask, two = {"question": "<image> What is it?"}, {"questions": ["a", "b"]}
    features, bare = model.extract_feature(make_pixels(1)), AutoTokenizer.from_pretrained(build_tokenizer(tmp_path))
    for method, own, pixels, options, message in (
        ("chat", tokenizer, 3, {**ask, "num_patches_list": [1, 1]}, "3 tiles, but .* adds up to 2"),
        ("chat", tokenizer, 2, {**ask, "num_patches_list": [1, 1]}, "16 image tokens .*, but 32 image feat"),
        ("batch_chat", tokenizer, 1, {**two, "num_patches_list": [1]}, "1 entries for 2 questions"),
        ("batch_chat", tokenizer, 0, {**two, "visual_features": features}, "1 tiles, but num_patches"),
        ("batch_chat", tokenizer, 2, two, "2 tiles, but .* adds up to 0"),
        ("batch_chat", tokenizer, 0, {**two, "history": []}, "keeps no history"),
        ("batch_chat", tokenizer, 0, {**two, "return_history": True}, "keeps no history"),
        ("chat", bare, 1, ask, "the tokenizer has no token '<img>'"),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=message):
            given = make_pixels(pixels) if pixels else None
            getattr(model, method)(own, given, generation_config={**GREEDY}, **options)
