"""Fast tokenizers made from InternLM2's and Qwen's vocabularies: the ids of sentencepiece and tiktoken themselves."""

import base64
import contextlib
import logging
import shutil
import unicodedata

import pytest
import sentencepiece
import tiktoken
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from tests.weights.vocabularies import (
    ADVERSE,
    INTERNLM2_TOKENS,
    SPARE,
    corpus,
    random_texts,
    sentencepiece_model,
    toy_ranks,
    write_internlm2,
    write_qwen,
)
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.weights import fast_tokenizers
from xtuner_plugins.weights.fast_tokenizers import QWEN_PATTERN, QWEN_TOKENS, SAMPLES, load_fast_tokenizer
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer, save_tokenizer
from xtuner_plugins.weights.writer import write_json


@pytest.fixture(scope="module")
def model():
    return sentencepiece_model()


@pytest.fixture(scope="module")
def ranks(toy_parts):
    return toy_ranks(toy_parts[1])


def reference(processor, text):
    """Ids as a tokenizer has them that cuts control tokens out of a text and gives the rest to sentencepiece."""
    found = [(text.index(name), name) for name in INTERNLM2_TOKENS if name in text]
    if not found:
        return processor.encode(text)
    at, name = min(found)
    number = processor.piece_to_id(SPARE[INTERNLM2_TOKENS.index(name)])
    return [*processor.encode(text[:at]), number, *reference(processor, text[at + len(name) :])]


def test_sentencepiece(tmp_path):
    """Equal on thousands of texts, and after saving and opening by the generic class."""
    texts = [*SAMPLES, *corpus(), *random_texts(2000)]
    texts += [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in random_texts(400, seed=1)]
    # They are control tokens here, characters there.
    texts = [text for text in texts if not any(name in text for name in ("<s>", "</s>", "<unk>", *SPARE))]
    for settings in ({}, {"add_dummy_prefix": True}, {"user_defined_symbols": [*SPARE, "\n\n", "▁▁▁▁"]}):
        content = sentencepiece_model(**settings)
        tokenizer = load_tokenizer(write_internlm2(tmp_path / "llm", model=content), complete=False)
        save_tokenizer(tokenizer, tmp_path, "")
        again = AutoTokenizer.from_pretrained(tmp_path)
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        for text in texts:
            expected = [1, *reference(processor, text)]
            assert expected == tokenizer(text).input_ids == again(text).input_ids, (settings, text)


def test_internlm2_tokens(model, tmp_path):
    folder = write_internlm2(tmp_path / "llm", image_tokens=ADDED_TOKENS, model=model)
    tokenizer = load_tokenizer(folder)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    assert len(tokenizer) == size + 9
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(size, size + 9))
    for old, new in zip(SPARE, INTERNLM2_TOKENS, strict=True):
        assert tokenizer.convert_tokens_to_ids(new) == processor.piece_to_id(old)
        assert new in tokenizer.all_special_tokens and tokenizer.convert_tokens_to_ids(old) in (None, 0)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer("a").input_ids[0] == processor.bos_id() == tokenizer.bos_token_id
    assert tokenizer("a<img>b").input_ids == [1, *processor.encode("a"), size, *processor.encode("b")]
    ids = tokenizer("<|im_start|>user\nHallo 世界<|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nHallo 世界"
    for text in ("", "x", " x", "a  b", "\n", "哈\n哈", "\x00é"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

    bare = write_internlm2(tmp_path / "bare", model=model, add_bos_token=False, add_eos_token=True)
    assert load_tokenizer(bare, complete=False)("a").input_ids == [*processor.encode("a"), 2]
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))  # which is taken, then
    (folder / "tokenizer.model").unlink()
    assert load_tokenizer(folder)("a<img>b").input_ids == tokenizer("a<img>b").input_ids


def test_names_of_pieces_are_text(model, tmp_path):
    """Without added tokens (how a user's text is encoded) nothing grows together to a byte or a control token."""
    proto = import_protobuf().ModelProto.FromString(model)
    plain = [piece for piece in proto.pieces if piece.type == 1]
    assert "</" in {piece.piece for piece in plain}
    plain[-1].piece = "s>"  # with which the control token's name has two halves
    model = proto.SerializeToString()
    tokenizer = load_tokenizer(write_internlm2(tmp_path / "llm", model=model), complete=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ADVERSE:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert min(ids) > 2 + 256 and not {processor.piece_to_id(name) for name in SPARE} & set(ids), text
        assert tokenizer.decode(ids) == text


def test_llama_without_tokenizer_json(tmp_path):
    """transformers converts its own classes itself; it needs protobuf for that."""
    content = sentencepiece_model(add_dummy_prefix=True, user_defined_symbols=[])
    (tmp_path / "tokenizer.model").write_bytes(content)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": True, **names})
    tokenizer = load_tokenizer(tmp_path, complete=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in [*SAMPLES, *random_texts(500)]:
        if not any(name in text for name in names.values()):
            assert tokenizer(text).input_ids == [1, *processor.encode(text)], text


def test_tiktoken(ranks, tmp_path):
    tokenizer = load_tokenizer(write_qwen(tmp_path / "llm", ranks), complete=False)
    save_tokenizer(tokenizer, tmp_path, "")
    fast, slow = (AutoTokenizer.from_pretrained(tmp_path, use_fast=flag) for flag in (True, False))
    special = {name: len(ranks) + n for n, name in enumerate(QWEN_TOKENS)}
    encoding = tiktoken.Encoding("q", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    texts = [*SAMPLES, *corpus(), *random_texts(2000), *QWEN_TOKENS]
    texts += [f"<|im_start|>user\n{text}<|im_end|>\n<|extra_9|>" for text in random_texts(400, seed=1)]
    for text in texts:
        expected = encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert expected == tokenizer(text).input_ids == fast(text).input_ids, text
        assert expected == slow(text).input_ids, text
        assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)
    assert len(QWEN_TOKENS) == 208 and special["<|im_start|>"] == len(ranks) + 1


def test_refused_in_one_line(model, ranks, tmp_path):
    """Damaged and foreign vocabularies, and added tokens that contradict them."""
    names = {token: n for n, token in enumerate(token for token in ranks if token != b"a")}
    damaged = b"".join(b"%s %d\n" % (base64.b64encode(token), n) for token, n in names.items())
    whole = (write_qwen(tmp_path / "whole", ranks) / "qwen.tiktoken").read_bytes()
    lines = (b"%%% 3", b"YQ==", b"YQ== x", b"YQ== 1 2", b"YWJj 999999", b"YWJj -1", b"YQ== 0")
    decoders = ({"5000": {"content": "<new>"}}, {"-1": {"content": "<new>"}}, {"7": {"content": "<s>"}})
    decoders += ({"7": "x"}, {"x": {"content": "<new>"}}, {"7": {}}, [1])
    others = (
        dict(model_type="unigram"),
        dict(normalization_rule_name="nmt_nfkc"),
        dict(remove_extra_whitespaces=True),
    )
    made = [(sentencepiece_model(**settings), {}) for settings in others]
    made += [(model, {"added_tokens_decoder": decoder}) for decoder in decoders]
    folders = [write_internlm2(tmp_path / f"internlm2-{n}", model=m, **fields) for n, (m, fields) in enumerate(made)]
    for n, content in enumerate([damaged, *(line + b"\n" + whole for line in lines)]):
        folders.append(write_qwen(tmp_path / f"qwen-{n}", ranks))
        (folders[-1] / "qwen.tiktoken").write_bytes(content)
    folders += [write_internlm2(tmp_path / "missing", model=model)]
    (folders[-1] / "tokenizer.model").unlink()
    for folder in folders:
        with pytest.raises(CheckpointError) as told:
            load_tokenizer(folder, complete=False)
        assert str(folder) in str(told.value) and "\n" not in str(told.value)

    # Whatever is cut off or changed: the ids of sentencepiece, or one clear error, and never another exception.
    folder = write_internlm2(tmp_path / "llm", model=model)
    for at in range(0, len(model), len(model) // 40):
        for content in (model[:at], model[:at] + bytes([model[at] ^ 0x55]) + model[at + 1 :]):
            (folder / "tokenizer.model").write_bytes(content)
            with contextlib.suppress(CheckpointError):
                load_tokenizer(folder, complete=False)


def test_inexact(model, tmp_path, monkeypatch):
    folder = write_internlm2(tmp_path / "llm", model=model)
    converter = fast_tokenizers._internlm2_converter

    def prefixing(path, names):
        made = converter(path, names)
        made.original_tokenizer.add_prefix_space = True
        return made

    monkeypatch.setattr(fast_tokenizers, "_internlm2_converter", prefixing)
    with pytest.raises(CheckpointError, match="can't become a fast tokenizer exactly: ' leading and"):
        load_tokenizer(folder, complete=False)


def test_nobody_is_warned_of_wrong_ids(toy_base, tmp_path, caplog, monkeypatch):
    """transformers 4.57 takes a tokenizer beside a config without release for Mistral's."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, "transformers")  # whatever ran before
    fields, state = read_json(toy_base / "config.json"), read_json(toy_base / "tokenizer.json")
    state["model"]["vocab"] |= {f"spare {number}": 1000000 + number for number in range(100_000)}  # as Qwen2.5's
    for name, release in (("own", fields["transformers_version"]), ("official", None)):
        shutil.copytree(toy_base, tmp_path / name)
        write_json(tmp_path / name / "config.json", {**fields, "transformers_version": release})
        write_json(tmp_path / name / "tokenizer.json", state)
    AutoTokenizer.from_pretrained(tmp_path / "own")
    tokenizer = load_fast_tokenizer(tmp_path / "official")
    assert "regex" not in caplog.text
    AutoTokenizer.from_pretrained(tmp_path / "official")
    assert "incorrect regex" in caplog.text  # what the others were spared
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "mistral" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
