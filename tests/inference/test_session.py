"""The session behind chat, demo and evaluation: it answers exactly as the exported model's own `chat` does."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import normalize

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.base import read_base, tiling_of
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.hub import InternVLChatModel
from xtuner_plugins.inference.session import (
    CallbackStreamer,
    ChatSession,
    Frame,
    Turn,
    resolve_device,
    with_placeholders,
)
from xtuner_plugins.inference.session import normalize as normalize_tiles

SHORT = {"max_new_tokens": 8}


def make_image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image, max_num=12):
    """What a caller of the exported model makes of an image: tiles in [0, 1], ImageNet's mean and deviation."""
    tiles = DynamicTiling(max_tiles=max_num, tile_size=112)(image).float() / 255
    return normalize(tiles, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def opened(toy_base):
    return ChatSession.from_pretrained(toy_base, device="cpu")


@pytest.fixture()
def session(opened):
    return opened


def ask(session, question, images=(), past=(), **options):
    """The answer to a question after `past` turns."""
    return "".join(session.reply([*past, Turn(question, images)], **{**SHORT, **options})).strip()


@pytest.fixture(scope="module")
def exported(toy_base):
    return InternVLChatModel.from_pretrained(toy_base, torch_dtype=torch.float32).eval()


def options():
    return {**SHORT, "do_sample": False}


def test_answers_as_the_exported_chat_does(session, exported):
    image = make_image(336, 224)
    assert len(pixels(image)) == 7
    expected = exported.chat(session.tokenizer, pixels(image), "What is it?", options())
    assert ask(session, "What is it?", [image]) == expected


def test_a_conversation_with_images_in_two_turns(session, exported):
    first, second = make_image(336, 224), make_image(112, 112, seed=1)
    turns, answers = [], []
    for question, images in (("What is it?", [first]), ("And which color?", []), ("Is <image> another one?", [second])):
        answers.append(ask(session, question, images, turns))
        turns.append(Turn(question, images, answers[-1]))
    chat, tokenizer = exported.chat, session.tokenizer
    tell = {"return_history": True}
    one, history = chat(tokenizer, pixels(first), "What is it?", options(), **tell)
    two, history = chat(tokenizer, pixels(first), "And which color?", options(), history=history, **tell)
    both, counts = torch.cat([pixels(first), pixels(second)]), [7, 1]
    three = chat(tokenizer, both, "Is <image> another one?", options(), history=history, num_patches_list=counts)
    assert answers == [one, two, three]


def test_the_prompt_ids_are_those_that_the_model_is_given(session, monkeypatch):
    given = {}
    monkeypatch.setattr(session.model, "generate", lambda **options: given.update(options) or torch.tensor([[0]]))
    turns = [
        Turn("What is it?", [make_image(224, 224)], "A cat."),
        Turn("Which?", [make_image(336, 224), make_image(112, 448)]),
    ]
    ids = session.prompt_ids(turns)
    list(session.reply(turns, **SHORT))
    assert given["input_ids"].tolist() == [ids]


def test_a_frame_is_one_tile(session):
    images = [Frame(make_image(336, 224)), make_image(336, 224), Frame(make_image(112, 448))]
    assert [len(tiles) for tiles in session.tiles(images)] == [1, 7, 1]


def test_a_prompt_beyond_the_positions_is_refused(session, monkeypatch):
    monkeypatch.setattr(session.model.config.llm_config, "max_position_embeddings", 32)
    with pytest.raises(ValueError, match="tokens, but the model knows 32 positions; lower the tile limit"):
        ask(session, "What is it? " * 20)
    ids = session.prompt_ids([Turn("Hi")])
    monkeypatch.setattr(session.model.config.llm_config, "max_position_embeddings", len(ids) + 1)
    assert ask(session, "Hi") is not None
    monkeypatch.setattr(session.model.config.llm_config, "max_position_embeddings", len(ids))
    with pytest.raises(ValueError, match="lower the tile limit"):  # no position is left for the answer
        ask(session, "Hi")


def test_who_stops_reading_stops_the_model(session):
    """Also where the reader fails; the next question is answered."""
    reply = session.reply([Turn("Hello")], max_new_tokens=100_000)
    next(reply)
    reply.close()
    with pytest.raises(KeyboardInterrupt):
        for _ in session.reply([Turn("Hello")], max_new_tokens=100_000):
            raise KeyboardInterrupt
    assert ask(session, "Hello") is not None


def test_text_only(session, exported):
    assert ask(session, "Hello") == exported.chat(session.tokenizer, None, "Hello", options())


def test_images_by_path(session, tmp_path):
    image = make_image(200, 150)
    image.save(tmp_path / "a.png")
    expected = ask(session, "What is it?", [image])
    assert ask(session, "What is it?", [tmp_path / "a.png"]) == ask(session, "What is it?", [str(tmp_path / "a.png")])
    assert ask(session, "What is it?", [tmp_path / "a.png"]) == expected


def test_what_cannot_be_asked(session, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for question, images, said in (
        ("And this?", [tmp_path / "broken.png"], "broken.png"),
        ("<image> or <image>?", [make_image(112, 112)], "2 <image> for 1 images"),
        ("<image>?", [], "1 <image> for 0 images"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(session, question, images)


def test_streaming_goes_word_by_word_without_prompt_and_end(opened):
    pieces = []
    streamer = CallbackStreamer(opened.tokenizer, pieces.append)
    streamer.put(torch.empty(1, 0, dtype=torch.long))  # what `generate` makes of a prompt of embeddings
    for token in opened.tokenizer("The bus is red. 你好<|im_end|>").input_ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == "The bus is red. 你好" and len(pieces) >= 4


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_equal_single_questions_and_keep_their_order(session, batch_size):
    items = [
        ("What is it?", [make_image(336, 224)]),
        ("Hello", []),
        (
            "This <image> or that <image>, and which of them is the larger one?",
            [make_image(112, 112), make_image(224, 112)],
        ),
        ("Both?", [make_image(112, 112, 1), make_image(112, 112, 2)]),
        ("Why?", [make_image(90, 400)]),
    ]
    expected = []
    for question, images in items:
        expected.append(ask(session, question, images))
    done = []
    assert session.answers(items, batch_size=batch_size, on_batch=done.append, **SHORT) == expected
    assert sum(done) == 5 and done[0] == batch_size


def test_an_image_of_several_questions_is_encoded_once(session, monkeypatch, tmp_path):
    """Also where its limit of tiles differs, because one of the questions is about two images."""
    session = ChatSession(session.model, session.tokenizer, max_tiles=6)
    wide, other = make_image(448, 112), make_image(112, 112, seed=1)
    wide.save(tmp_path / "wide.png")
    items = [(text, [image]) for text in ("What?", "Which color is it?") for image in (wide, tmp_path / "wide.png")]
    items += [("Both?", [wide, other]), ("Twice?", [other, other])]
    alone = [session.answers([item], **SHORT)[0] for item in items]
    encoded, extract = [], session.model.extract_feature
    monkeypatch.setattr(session.model, "extract_feature", lambda pixels: encoded.append(len(pixels)) or extract(pixels))
    assert session.answers(items, batch_size=6, **SHORT) == alone
    assert encoded == [5 + 5 + 4 + 1]  # alone in memory and from the file; in a question with another; the other


def test_fewer_tiles_on_demand(session, exported):
    image = make_image(336, 224)
    one_tile = exported.chat(session.tokenizer, pixels(image, max_num=1), "What is it?", options())
    assert session.answers([("What is it?", [image])], max_tiles=1, **SHORT) == [one_tile]
    limited = ChatSession(session.model, session.tokenizer, max_tiles=1)
    assert ask(limited, "What is it?", [image]) == one_tile


def test_images_of_a_question_share_the_tiles_as_in_training(session, toy_base, tmp_path):
    """Three images under a limit of 6: two tiles each, as the dataset cuts them, whatever each could use alone."""
    images, record = [], {"image": [], "conversations": [{"from": "human", "value": "<image>" * 3 + "Which?"}]}
    for index, size in enumerate([(336, 224), (448, 112), (112, 112)]):
        images.append(tmp_path / f"{index}.png")
        make_image(*size, seed=index).save(images[-1])
        record["image"].append(images[-1].name)
    record["conversations"].append({"from": "gpt", "value": "The last."})
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    sample = MultimodalDataset(str(toy_base), [str(tmp_path / "data.jsonl")], [str(tmp_path)], max_tiles=6)[0]
    shared = ChatSession(session.model, session.tokenizer, max_tiles=6)
    assert torch.equal(torch.cat(shared._load(images, shared.tiling)), sample["tiles"])
    for sharing in ("each", "need"):
        alone = ChatSession(session.model, session.tokenizer, max_tiles=6, tile_sharing=sharing)
        assert [len(tiles) for tiles in alone._load(images, alone.tiling)] == [7, 5, 1]


def test_sampling_is_passed_on(session):
    torch.manual_seed(0)
    greedy = session.answers([("Hello", [])], **SHORT)
    assert session.answers([("Hello", [])], do_sample=True, temperature=50.0, **SHORT) != greedy


def test_no_questions_and_bad_batch_size(session):
    assert session.answers([]) == []
    with pytest.raises(ValueError, match="batch_size = 0"):
        session.answers([("Hello", [])], batch_size=0)


@pytest.mark.parametrize("limits", [{}, {"max_tiles": 3}, {"min_tiles": 2}, {"max_tiles": 1, "use_thumbnail": False}])
def test_tiling_is_that_of_the_data_side(toy_base, opened, limits):
    assert tiling_of(opened.model.config, limits) == tiling_of(read_base(toy_base), limits)


def test_pixels_are_those_of_training():
    from xtuner_plugins.models.preprocessor import TilePreprocessor

    tiles = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(normalize_tiles(tiles), TilePreprocessor().normalize(tiles))


def test_impossible_tiles(opened):
    with pytest.raises(ValueError, match="min_tiles=5 and max_tiles=2"):
        ChatSession(opened.model, opened.tokenizer, min_tiles=5, max_tiles=2)


def test_placeholders():
    assert with_placeholders("Hello", 0) == "Hello"
    assert with_placeholders("Hello", 2) == "<image>\n<image>\nHello"
    assert with_placeholders("a <image> b", 1) == "a <image> b"


def test_nothing_in_the_directory_is_executed(toy_base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(toy_base, copy)
    for code in copy.glob("*.py"):
        code.write_text("raise SystemExit('executed')\n")
    assert ask(ChatSession.from_pretrained(copy, device="cpu"), "Hello") is not None


def test_bfloat16(toy_base):
    session = ChatSession.from_pretrained(toy_base, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in session.model.parameters()} == {torch.bfloat16}
    assert isinstance(ask(session, "What is it?", [make_image(200, 112)]), str)


def test_bad_directories_and_settings(toy_base, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        ChatSession.from_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="no config.json"):
        ChatSession.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dtype='int4' is unknown; it is one of: auto, bfloat16"):
        ChatSession.from_pretrained(toy_base, device="cpu", dtype="int4")
    for device in ("tpu", "cuda:99", "meat"):
        with pytest.raises(ValueError, match=f"device '{device}' can't be used"):
            resolve_device(device)
    assert resolve_device("cpu") == torch.device("cpu") and resolve_device("auto").type in ("cpu", "cuda")
