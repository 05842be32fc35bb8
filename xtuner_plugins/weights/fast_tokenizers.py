"""Fast tokenizers of local directories, including two whose own classes need remote code: InternLM2's and Qwen-7B's.

========================  ======================  ====================================================================
class in the config       vocabulary              what it becomes
========================  ======================  ====================================================================
``InternLM2Tokenizer``    ``tokenizer.model``     BPE of characters with byte fallback, ``<s>`` in front of a text
``QWenTokenizer``         ``qwen.tiktoken``       Qwen2's tokenizer: BPE of bytes, 3 control tokens and 205 spare ones
========================  ======================  ====================================================================

The conversion is transformers' own (``LlamaConverter``, ``TikTokenConverter``); no code from the directory runs. A
converted tokenizer is returned only if it turns ``SAMPLES`` into the same ids as sentencepiece or tiktoken.
"""

import base64
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ..stack import builds_tokenizers_anew
from .reading import CheckpointError, read_json

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_NAMED_FILES = ("tokenizer_file", "vocab_file", "merges_file", "spm_file")  # the files that transformers would take
_PLAIN, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)  # types of a sentencepiece
# Each kind of character and spacing that a conversion could get wrong, alone and beside others.
SAMPLES = (
    " leading and trailing ",
    "  two   three    four",
    " \t\tx\r\n \n\n\nword\n\n  - item\n\n    code",
    "\n",
    "",
    "it's we'll I'D don't 3.14159 1,000,000 2024-05-06 0x1F 007",
    "你好，世界！今天是星期三。\u3000全角 日本語のテスト 한국어 텍스트 𝒳 𠮷 🄰",
    "Привет, мир مرحبا بالعالم नमस्ते दुनिया ภาษาไทย שלום",
    "e\u0301 é ﬁ ① ｆｕｌｌ ǅ ẞ ß İ A\u0300B\u0301 ½ ² Ⅷ …—–“”‘’",
    "def f(x):\n    return {'a': [x ** 2, -1]}  # done\nif (a&&b) { c = \"d\\n\"; }",
    "<a href='x'>b</a> www.example.org/?q=1&r=%20",
    "😀👍🏽👨\u200d👩\u200d👧\u200b\u200d\ufeff\x00\x01\x1b\x7f",
    "\u2581a \u2581<0x0A><0x41><s></s<|im_[UNUSED",
    "================--------aaaaaaaaaaaaaaaaa哈哈哈哈哈哈哈",
)


def load_fast_tokenizer(directory: str | Path):
    """The fast tokenizer of a local directory; no code from it runs, nothing is downloaded.

    Raises:
        CheckpointError: a vocabulary that can't be converted exactly.
        Exception: what transformers raises for a directory without a tokenizer, or with a damaged one.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

    directory = Path(directory)
    config = read_json(directory / "tokenizer_config.json", missing={})
    if elsewhere := [key for key, value in config.items() if value and key in _NAMED_FILES]:
        told = f"names its own {', '.join(elsewhere)}; only files of this directory are read: remove the key"
        raise CheckpointError(f"{directory}/tokenizer_config.json {told}")
    path, kind = directory / "tokenizer.json", str(config.get("tokenizer_class")).removesuffix("Fast")
    if kind == "LlamaTokenizer" and not path.is_file() and builds_tokenizers_anew():
        return _from_sentencepiece(directory, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config})
    plain = partial(PreTrainedTokenizerFast.from_pretrained, str(directory), local_files_only=True)
    if kind in CONVERTERS:
        return plain() if path.is_file() else CONVERTERS[kind](directory, config)
    # If config.json names no release of transformers (official ones don't), 4.57 takes any tokenizer for Mistral's and
    # warns of wrong ids, unless this option is given.
    options = dict(use_fast=True, trust_remote_code=False, fix_mistral_regex=False, local_files_only=True)
    if read_json(directory / "config.json", missing={}).get("model_type") == "internvl_chat":
        options["config"] = PretrainedConfig()  # transformers 5 warns that it doesn't know the directory's own
    tokenizer = AutoTokenizer.from_pretrained(str(directory), **options)
    if not path.is_file() or not builds_tokenizers_anew():
        return tokenizer
    own, ids = Tokenizer.from_file(str(path)), tokenizer(list(SAMPLES), add_special_tokens=False).input_ids
    return tokenizer if ids == [own.encode(text, add_special_tokens=False).ids for text in SAMPLES] else plain()


def _from_tiktoken(directory: Path, config: Mapping):
    """Qwen's vocabulary, whose lines hold a token in base64 and its id, as Qwen2's tokenizer."""
    import tiktoken
    from tokenizers import normalizers
    from transformers import Qwen2TokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode, generate_merges

    path = directory / "qwen.tiktoken"
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    if sorted(ranks.values()) != list(range(len(lines))) or not ranks.keys() >= {bytes([n]) for n in range(256)}:
        raise CheckpointError(f"{path} is damaged: ids don't run from 0 without a gap, or one of the 256 bytes lacks")

    class Converter(TikTokenConverter):
        # The library would read the file through tiktoken's cache, which identifies files by name only.
        def extract_vocab_merges_from_model(self, _):
            letters = bytes_to_unicode()
            vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
            return vocab, generate_merges(vocab, None)

    converter = Converter(pattern=QWEN_PATTERN)
    converter.additional_special_tokens = list(QWEN_TOKENS)  # an argument in transformers 4, where None fails
    converted = converter.converted()
    converted.add_special_tokens(list(QWEN_TOKENS))
    converted.normalizer = normalizers.NFC()
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens={})
    _check(converted, lambda text: encoding.encode(unicodedata.normalize("NFC", text)), path)
    return Qwen2TokenizerFast(tokenizer_object=converted, model_max_length=config.get("model_max_length"))


def _from_sentencepiece(directory: Path, config: Mapping):
    """InternLM2's vocabulary, in which the config renames spare pieces and to which it appends tokens."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    path = directory / "tokenizer.model"
    reference = SentencePieceProcessor(model_proto=path.read_bytes())
    listed = config.get("added_tokens_decoder") or {}
    added = {int(number): AddedToken(**token) for number, token in listed.items()}
    converted = _internlm2_converter(path, {number: token.content for number, token in added.items()}).converted()
    _check(converted, reference.encode, path)  # without <s> and added tokens, which sentencepiece doesn't have
    named = {key: _text(config.get(key)) for key in ("unk_token", "bos_token", "eos_token", "pad_token")}
    before = [named["bos_token"]] if config.get("add_bos_token", True) else []
    after = [named["eos_token"]] if config.get("add_eos_token", False) else []
    if before or after:
        single, pair = [*before, "$A", *after], [*before, "$A", *after, *before, "$B", *after]
        special = [(name, converted.token_to_id(name)) for name in {*before, *after}]
        converted.post_processor = processors.TemplateProcessing(single, pair, special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converted,
        added_tokens_decoder=added,
        additional_special_tokens=[_text(token) for token in config.get("additional_special_tokens") or []],
        clean_up_tokenization_spaces=False,
        **named,
        **{key: config[key] for key in ("model_max_length", "padding_side", "chat_template") if key in config},
    )
    for number, token in added.items():
        if tokenizer.convert_tokens_to_ids(token.content) != number:
            raise CheckpointError(f"{directory}: the added token {token.content!r} can't have the id {number}")
    return tokenizer


def _internlm2_converter(path: Path, names: Mapping[int, str]):
    """The library's converter of Llama's tokenizers, with merges that only lead to ordinary pieces.

    Its own merges a text such as ``<0x0A>`` or a control token's name to that piece; sentencepiece never does.
    ``names`` are those that the directory gives to pieces, by index; larger indices are passed over.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import LlamaConverter, generate_merges

    class Converter(LlamaConverter):
        def tokenizer(self, proto):
            pieces = proto.pieces
            plain = {piece.piece: n for n, piece in enumerate(pieces) if piece.type == _PLAIN}
            merges = generate_merges(plain, [(name, pieces[n].score) for name, n in plain.items()])
            vocabulary = {piece.piece: n for n, piece in enumerate(pieces)}
            unknown = next(piece.piece for piece in pieces if piece.type == _UNKNOWN)
            made = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
            whole = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]  # never split in a text
            made.add_tokens([AddedToken(name, normalized="▁" in name, special=False) for name in whole])
            return made

    converter = Converter(SimpleNamespace(vocab_file=str(path)))
    spec, pieces = converter.proto.normalizer_spec, converter.proto.pieces
    converter.original_tokenizer.add_prefix_space = spec.add_dummy_prefix
    for number, name in names.items():
        if number < len(pieces) and name != pieces[number].piece:
            pieces[number].piece, pieces[number].type = name, _CONTROL
    if len({piece.piece for piece in pieces} - {""}) != len(pieces):
        raise CheckpointError(f"{path}: two tokens have one name, or one has none: its files contradict each other")
    return converter


def _text(token) -> str | None:
    """A token's content; configs hold it alone or with its flags."""
    return token.get("content") if isinstance(token, Mapping) else token


def _check(tokenizer, reference: Callable[[str], list[int]], path: Path) -> None:
    """Compares ids of ``SAMPLES`` with those of the library that the vocabulary was made for."""
    for text in SAMPLES:
        ids, expected = tokenizer.encode(text, add_special_tokens=False).ids, reference(text)
        if ids != expected:
            told = f"can't become a fast tokenizer exactly: {text!r} would give {ids[:20]} instead of {expected[:20]}"
            raise CheckpointError(f"{path} {told}; put a tokenizer.json beside it")


CONVERTERS = {"InternLM2Tokenizer": _from_sentencepiece, "QWenTokenizer": _from_tiktoken}
