"""Fast tokenizers made from InternLM2's and Qwen's vocabularies: the ids of sentencepiece and tiktoken themselves."""

import contextlib
import re
import shutil
import unicodedata
from unittest import mock

import pytest
import tiktoken
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from tests.weights import language_models
from tests.weights.language_models import ADVERSE, INTERNLM2_TOKENS, SPARE, random_texts, write_internlm2, write_qwen
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.weights import fast_tokenizers
from xtuner_plugins.weights.fast_tokenizers import QWEN_PATTERN, QWEN_TOKENS, SAMPLES
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer, save_tokenizer
from xtuner_plugins.weights.writer import write_json


@pytest.fixture(scope="module")
def model():
    return language_models.sentencepiece_model()


@pytest.fixture(scope="module")
def ranks(toy_parts):
    return language_models.toy_ranks(toy_parts[1])


TEXTS = [*SAMPLES, *language_models.corpus()[::3], *random_texts(800), "a<img>b"]
TEXTS += [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<|extra_9|>" for text in random_texts(200, 1)]


def test_internlm2(tmp_path):
    """Equal on thousands of texts, and after saving and opening by the generic class."""
    # They are control tokens here, characters there.
    texts = [text for text in TEXTS if not any(name in text for name in ("<s>", "</s>", "<unk>", *SPARE))]
    for settings in ({}, {"add_dummy_prefix": True}, {"user_defined_symbols": [*SPARE, "\n\n", "▁▁▁▁"]}):
        content = language_models.sentencepiece_model(**settings)
        processor = SentencePieceProcessor(model_proto=content)
        tokens = dict(zip(INTERNLM2_TOKENS, map(processor.piece_to_id, SPARE), strict=True))
        tokens |= {name: processor.get_piece_size() + n for n, name in enumerate(ADDED_TOKENS)}
        tokenizer = load_tokenizer(write_internlm2(tmp_path / "llm", image_tokens=ADDED_TOKENS, model=content))
        save_tokenizer(tokenizer, tmp_path, {"template": "internvl2_5"})
        assert tokenizer.get_vocab().items() >= tokens.items() and tokens.keys() <= set(tokenizer.all_special_tokens)
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
        again, cut = AutoTokenizer.from_pretrained(tmp_path), re.compile(f"({'|'.join(map(re.escape, tokens))})")
        for text in texts:
            parts = [[tokens[part]] if part in tokens else processor.encode(part) for part in cut.split(text)]
            expected = [1, *sum(parts, [])]
            assert expected == tokenizer(text).input_ids == again(text).input_ids, (settings, text)
            if not cut.search(text) and not settings:
                assert tokenizer.decode(expected, skip_special_tokens=True) == text.replace("▁", " ")

    bare = write_internlm2(tmp_path / "bare", model=content, add_bos_token=False, add_eos_token=True)
    assert load_tokenizer(bare, complete=False)("a").input_ids == [*processor.encode("a"), 2]
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "llm")  # which is taken, then
    (tmp_path / "llm" / "tokenizer.model").unlink()
    assert load_tokenizer(tmp_path / "llm")("a<img>b").input_ids == tokenizer("a<img>b").input_ids


def test_names_of_pieces_are_text(model, tmp_path):
    """Without added tokens (how a user's text is encoded) nothing grows together to a byte or a control token."""
    proto = import_protobuf().ModelProto.FromString(model)
    plain = [piece for piece in proto.pieces if piece.type == 1]
    assert "</" in {piece.piece for piece in plain}
    plain[-1].piece = "s>"  # with which the control token's name has two halves
    model = proto.SerializeToString()
    tokenizer = load_tokenizer(write_internlm2(tmp_path / "llm", model=model), complete=False)
    named = set(map(SentencePieceProcessor(model_proto=model).piece_to_id, SPARE))
    for text in ADVERSE:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert min(ids) > 2 + 256 and not named & set(ids) and tokenizer.decode(ids) == text, text


def test_qwen(ranks, tmp_path):
    tokenizer = load_tokenizer(write_qwen(tmp_path / "llm", ranks), complete=False)
    save_tokenizer(tokenizer, tmp_path, {"template": "internvl2_5"})
    fast, slow = (AutoTokenizer.from_pretrained(tmp_path, use_fast=flag) for flag in (True, False))
    special = {name: len(ranks) + n for n, name in enumerate(QWEN_TOKENS)}
    encoding = tiktoken.Encoding("q", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    for text in [*TEXTS, *QWEN_TOKENS]:
        expected = encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert expected == tokenizer(text).input_ids == fast(text).input_ids == slow(text).input_ids, text
        assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)
    assert len(QWEN_TOKENS) == 208 and special["<|im_start|>"] == len(ranks) + 1


def test_refused_in_one_line(model, ranks, tmp_path, refused):
    """Damaged and foreign vocabularies, and added tokens that contradict them; cut off or changed, they never crash."""
    folder, qwen = tmp_path / "llm", tmp_path / "qwen"
    for decoder in ({"5000": {"content": "<new>"}}, {"7": {"content": "<s>"}}, {"x": {"content": "y"}}, {"7": {}}, [1]):
        write_internlm2(folder, model=model, added_tokens_decoder=decoder)
        refused(f"^{folder}.*$", load_tokenizer, folder, complete=False)
    inexact = language_models.sentencepiece_model(remove_extra_whitespaces=True)
    for other, words in ((b"", ".*"), (inexact, ".*can't become a fast tokenizer exactly: ' leading and .*")):
        write_internlm2(folder, model=other)
        refused(f"^{folder}{words}$", load_tokenizer, folder, complete=False)
    lacking = {token: n for n, token in enumerate(token for token in ranks if token != b"a")}
    lines = (b"%%% 3", b"YQ==", b"YQ== 1 2", b"YWJj 999999", b"YWJj -1", b"YQ== 0")
    for vocabulary, line in ((lacking, b""), *((ranks, line) for line in lines)):
        write_qwen(qwen, vocabulary)
        with open(qwen / "qwen.tiktoken", "ab") as file:
            file.write(line)
        refused(f"^{qwen}.*$", load_tokenizer, qwen, complete=False)
    write_internlm2(folder, model=model)
    for at in range(0, len(model), len(model) // 40):
        for content in (model[:at], model[:at] + bytes([model[at] ^ 0x55]) + model[at + 1 :]):
            (folder / "tokenizer.model").write_bytes(content)
            with contextlib.suppress(CheckpointError):
                load_tokenizer(folder, complete=False)


def test_llama_without_tokenizer_json(tmp_path):
    """As Vicuna's releases are."""
    content, names = language_models.sentencepiece_model(add_dummy_prefix=True), ("<s>", "</s>", "<unk>")
    (tmp_path / "tokenizer.model").write_bytes(content)
    named = dict(zip(("bos_token", "eos_token", "unk_token"), names, strict=True))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": True, **named})
    tokenizer, processor = load_tokenizer(tmp_path, complete=False), SentencePieceProcessor(model_proto=content)
    for text in (text for text in TEXTS if not any(name in text for name in (*names, *SPARE))):
        assert tokenizer(text).input_ids == [1, *processor.encode(text)], text


def test_tokenizer_json_counts_whatever_the_class(toy_base, tmp_path, monkeypatch):
    """Transformers 5 would take Qwen2's rules for spaces and normal forms; the file is compared with what it makes."""
    base, state = shutil.copytree(toy_base, tmp_path / "base"), read_json(toy_base / "tokenizer.json")
    write_json(base / "tokenizer.json", {**state, "normalizer": {"type": "Prepend", "prepend": " "}})
    save_tokenizer(load_tokenizer(base), base, {"template": "internvl2_5"})
    for tokenizer in (load_tokenizer(base), AutoTokenizer.from_pretrained(base, trust_remote_code=False)):
        plain, spaced = load_tokenizer(toy_base)(["two words", " two words"]).input_ids
        assert tokenizer("two words").input_ids == spaced != plain
    made = load_tokenizer(toy_base)
    for builds_anew, expected in ((True, spaced), (False, plain)):
        monkeypatch.setattr(fast_tokenizers, "builds_tokenizers_anew", lambda answer=builds_anew: answer)
        with mock.patch.object(AutoTokenizer, "from_pretrained", return_value=made):
            assert load_tokenizer(base)("two words").input_ids == expected
