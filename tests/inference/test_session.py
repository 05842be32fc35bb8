"""The session behind chat, page and evaluation: it answers exactly as the exported model's own `chat` does."""

import json
import shutil
import threading
from unittest import mock

import pytest
import torch
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.base import read_base, tiling_of
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.hub.modeling_internvl_chat import InternVLChatModel
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import ChatSession, Frame, Turn, normalize
from xtuner_plugins.models.preprocessor import TilePreprocessor

SHORT = {"max_new_tokens": 8}


def make_image(width, height):
    return Image.effect_noise((width, height), 80).convert("RGB")


def pixels(image, max_tiles=12):
    """What a caller of the exported model makes of an image, with the preprocessing of training."""
    return TilePreprocessor().normalize(DynamicTiling(max_tiles=max_tiles, tile_size=112)(image))


@pytest.fixture(scope="module")
def session(toy_base, tmp_path_factory):
    """Of a directory of which nothing is executed."""
    base = shutil.copytree(toy_base, tmp_path_factory.mktemp("session") / "base")
    for code in base.glob("*.py"):
        code.write_text("raise SystemExit('executed')\n")
    return open_session(base, device="cpu")


def ask(session, question, images=(), past=(), **options):
    """The answer to a question after `past` turns."""
    return "".join(session.reply([*past, Turn(question, images)], **{**SHORT, **options})).strip()


def test_a_conversation_answers_as_the_exported_chat_does(session, toy_base):
    exported = InternVLChatModel.from_pretrained(toy_base, torch_dtype=torch.float32).eval()
    first, second = make_image(336, 224), make_image(112, 112)
    both = {"pixel_values": torch.cat([pixels(first), pixels(second)]), "num_patches_list": [7, 1]}
    tell, history, turns = {"generation_config": {**SHORT, "do_sample": False}, "return_history": True}, None, []
    for question, images, given in (
        ("What is it?", [first], {"pixel_values": pixels(first)}),
        ("And which color?", [], {"pixel_values": pixels(first)}),
        ("Is <image> another one?", [second], both),
    ):
        expected, history = exported.chat(session.tokenizer, question=question, history=history, **given, **tell)
        assert ask(session, question, images, turns) == expected
        turns.append(Turn(question, images, expected))
    text, _ = exported.chat(session.tokenizer, None, "Hello", **tell)
    assert ask(session, "Hello") == text
    one_tile, _ = exported.chat(session.tokenizer, pixels(first, max_tiles=1), "What is it?", **tell)
    assert session.answers([("What is it?", [first])], max_tiles=1, **SHORT) == [one_tile]
    limited = ChatSession(session.model, session.tokenizer, max_tiles=1)
    assert ask(session, "What is it?", [first], max_tiles=1) == ask(limited, "What is it?", [first]) == one_tile


def test_what_the_model_is_given(session, monkeypatch):
    """The ids of the prompt, with the system prompt of the conversation; a prompt beyond the positions is refused."""
    config, own = session.model.config.llm_config, session.model.system_message
    generate = mock.Mock(return_value=torch.tensor([[0]]))
    monkeypatch.setattr(session.model, "generate", generate)
    turns = [Turn("What is it?", [make_image(224, 224)], "A cat."), Turn("Which?", [make_image(336, 224)] * 2)]
    list(session.reply(turns))
    given = generate.call_args.kwargs
    assert given["input_ids"].tolist() == [session.prompt_ids(turns)] and given["max_new_tokens"] == 512
    list(session.reply(turns, system="Be brief."))
    assert "Be brief." in session.tokenizer.decode(generate.call_args.kwargs["input_ids"][0])
    assert session.model.system_message == own
    ids = session.prompt_ids([Turn("Hi")])
    monkeypatch.setattr(config, "max_position_embeddings", len(ids) + 1)
    assert ask(session, "Hi") is not None
    monkeypatch.setattr(config, "max_position_embeddings", len(ids))  # no position is left for the answer
    for asks in (lambda: ask(session, "Hi"), lambda: session.answers([("Hi", [])])):
        with pytest.raises(ValueError, match=f"tokens, but the model knows {len(ids)} positions; lower the tile limit"):
            asks()


def test_who_stops_reading_stops_the_model(session):
    """Also where the reader fails; the next question is answered."""
    count, reply = threading.active_count(), session.reply([Turn("Hello")], max_new_tokens=100_000)
    next(reply)
    reply.close()
    assert threading.active_count() == count  # the thread that asks has ended
    with pytest.raises(KeyboardInterrupt):
        for _ in session.reply([Turn("Hello")], max_new_tokens=100_000):
            raise KeyboardInterrupt
    assert ask(session, "Hello") is not None


def test_batches_equal_single_questions_and_keep_their_order(session):
    items = [
        ("What is it?", [make_image(336, 224)]),
        ("Hello", []),
        ("This <image> or that <image>, and which is the larger one?", [make_image(112, 112), make_image(224, 112)]),
        ("Why?", [make_image(90, 400)]),
    ]
    expected = [ask(session, question, images) for question, images in items]
    for batch_size in (1, 3):
        assert session.answers(items, batch_size=batch_size, **SHORT) == expected
    torch.manual_seed(0)  # sampling is passed on
    assert session.answers(items, do_sample=True, temperature=50.0, **SHORT) != expected


def test_an_image_of_several_questions_is_encoded_once(session, monkeypatch, tmp_path):
    """Also where its limit of tiles differs, because one of the questions is about two images."""
    session = ChatSession(session.model, session.tokenizer, max_tiles=6)
    wide, other = make_image(448, 112), make_image(112, 112)
    wide.save(tmp_path / "wide.png")
    items = [(text, [image]) for text in ("What?", "Which color is it?") for image in (wide, tmp_path / "wide.png")]
    items += [("Both?", [wide, other]), ("Twice?", [other, other])]
    alone = [session.answers([item], **SHORT)[0] for item in items]
    encoded, extract = [], session.model.extract_feature
    monkeypatch.setattr(session.model, "extract_feature", lambda pixels: encoded.append(len(pixels)) or extract(pixels))
    assert session.answers(items, batch_size=6, **SHORT) == alone
    assert encoded == [5 + 5 + 4 + 1]  # alone in memory and from the file; in a question with another; the other


def test_tiles_and_pixels_are_those_of_training(session, toy_base, tmp_path):
    """Three images under a limit of 6: two tiles each, as the dataset cuts them, whatever each could use alone."""
    images, record = [], {"image": [], "conversations": [{"from": "human", "value": "<image>" * 3 + "Which?"}]}
    record["conversations"].append({"from": "gpt", "value": "The last."})
    for name, size in {"a.png": (336, 224), "b.png": (448, 112), "c.png": (112, 112)}.items():
        images.append(tmp_path / name)
        make_image(*size).save(images[-1])
        record["image"].append(name)
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    sample = MultimodalDataset(str(toy_base), [str(tmp_path / "data.jsonl")], [str(tmp_path)], max_tiles=6)[0]
    shared = ChatSession(session.model, session.tokenizer, max_tiles=6)
    assert torch.equal(torch.cat(shared.tiles(images)), sample["tiles"])
    frames = [Frame(Image.open(images[0])), images[0], Frame(Image.open(images[1]))]
    assert [len(tiles) for tiles in shared.tiles(frames)] == [1, 7, 1]  # a frame is one tile and takes none away
    for limits in ({}, {"max_tiles": 3}, {"min_tiles": 2}, {"max_tiles": 1, "use_thumbnail": False}):
        assert ChatSession(session.model, session.tokenizer, **limits).tiling == tiling_of(read_base(toy_base), limits)
    tiles = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(normalize(tiles), TilePreprocessor().normalize(tiles))


def test_what_differs_from_the_training_is_told(session, caplog):
    """Another rule of Pillow, and tile limits as an earlier version had them."""
    for lock in (None, {"tile_sharing": "equal"}, {"tile_sharing": "each", "resize_rule": "other"}):
        ChatSession(session.model, session.tokenizer, lock=lock)
    first, second = (record.getMessage() for record in caplog.records)
    assert "resize rule other" in first and "had a tile limit of its own" in second


def test_what_cannot_be_asked_or_opened(session, toy_base, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for item, said in (
        (("And this?", [tmp_path / "broken.png"]), "broken.png"),
        (("<image> or <image>?", [make_image(112, 112)]), "2 <image> for 1 images"),
        (("<image>?", []), "1 <image> for 0 images"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(session, *item)
        with pytest.raises(ValueError, match=said):
            session.answers([item])
    with pytest.raises(ValueError, match="batch_size = 0"):
        session.answers([("Hi", [])], batch_size=0)
    for options, said in (
        ({"dtype": "int4"}, "dtype='int4' is unknown; it is one of: auto, bfloat16"),
        ({"min_tiles": 5, "max_tiles": 2}, "min_tiles=5 and max_tiles=2"),
        *(({"device": name}, f"device '{name}' can't be used") for name in ("tpu", "cuda:99")),
    ):
        with pytest.raises(ValueError, match=said):
            open_session(toy_base, **options)
