"""Fast tokenizers of local directories, including two whose own classes need remote code: InternLM2's and Qwen-7B's.

========================  ======================  ====================================================================
class in the config       vocabulary              what it becomes
========================  ======================  ====================================================================
``InternLM2Tokenizer``    ``tokenizer.model``     BPE of characters with byte fallback, ``<s>`` in front of a text
``QWenTokenizer``         ``qwen.tiktoken``       Qwen2's tokenizer: BPE of bytes, 3 control tokens and 205 spare ones
========================  ======================  ====================================================================

The conversion is transformers' own (``SpmConverter``, ``TikTokenConverter``); no code from the directory runs. A
converted tokenizer is returned only if it turns ``SAMPLES`` into the same ids as sentencepiece or tiktoken.

Special tokens and options follow the tokenizer code that the two models were published with.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

from .reading import CheckpointError, read_json

MAX_BYTES = 64 * 2**20  # real vocabularies have 1 to 5 MB
MAX_PIECE = 1000  # bytes or characters per token; real ones have up to 128
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_PLAIN, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # types of a sentencepiece
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
        CheckpointError: see ``convert``.
        Exception: what transformers raises for a directory without a tokenizer, or with a damaged one.
    """
    directory = Path(directory)
    name = read_json(directory / "tokenizer_config.json", missing={}).get("tokenizer_class")
    if isinstance(name, str) and name.removesuffix("Fast") in CONVERTERS:
        return convert(directory, *CONVERTERS[name.removesuffix("Fast")])
    from transformers import AutoTokenizer

    # If config.json names no release of transformers (official ones don't), 4.57 takes any tokenizer for Mistral's and
    # warns of wrong ids, unless this option is given.
    tokenizer = AutoTokenizer.from_pretrained(
        str(directory), use_fast=True, trust_remote_code=False, local_files_only=True, fix_mistral_regex=False
    )
    tokenizer.init_kwargs.pop("fix_mistral_regex", None)
    return tokenizer


def convert(directory: Path, file: str, make: Callable):
    """A fast tokenizer with the ids of the directory's own.

    Args:
        directory: with a tokenizer class of the table above; a ``tokenizer.json`` in it is taken as it is.
        file: name of its vocabulary.
        make: makes the tokenizer from the path of the vocabulary and ``tokenizer_config.json``.

    Returns:
        A ``transformers.PreTrainedTokenizerFast`` or a subclass.

    Raises:
        CheckpointError: the vocabulary is missing, damaged, or can't be converted exactly.
    """
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    path = directory / file
    if not path.is_file():
        raise CheckpointError(f"{directory} has neither tokenizer.json nor {file}, so there is no vocabulary")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; that is no vocabulary")
    return make(path, read_json(directory / "tokenizer_config.json"))


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Tokens and ids of a tiktoken file, whose lines hold a token in base64 and its id.

    Raises:
        CheckpointError: another kind of line, or ids that don't run from 0 without a gap.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            if ranks.setdefault(token, int(rank)) != int(rank):
                raise ValueError("a second id")
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"{path}:{number}: {line[:40]!r} is not a new token in base64 and its id; the file is damaged"
            ) from None
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path}: the ids of {len(ranks)} tokens don't run from 0 without a gap; it is damaged")
    single = sum(len(token) == 1 for token in ranks)
    longest = max(map(len, ranks))
    if single != 256 or b"" in ranks or longest > MAX_PIECE:
        raise CheckpointError(f"{path} has {single} of the 256 single bytes and up to {longest} in one; it is damaged")
    return ranks


def _from_tiktoken(path: Path, config: Mapping):
    from tokenizers import normalizers
    from transformers import Qwen2TokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode, generate_merges

    ranks = read_tiktoken(path)

    class Converter(TikTokenConverter):
        # The library would read the file through tiktoken's cache, which identifies files by name only.
        def extract_vocab_merges_from_model(self, _):
            letters = bytes_to_unicode()
            vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
            return vocab, generate_merges(vocab, None)

    converted = Converter(pattern=QWEN_PATTERN, additional_special_tokens=list(QWEN_TOKENS)).converted()
    converted.normalizer = normalizers.NFC()
    _check(converted, _tiktoken_ids(ranks), path)
    return Qwen2TokenizerFast(tokenizer_object=converted, model_max_length=_max_length(config))


def _tiktoken_ids(ranks: Mapping[bytes, int]) -> Callable[[str], list[int]]:
    import tiktoken

    special = {token: len(ranks) + n for n, token in enumerate(QWEN_TOKENS)}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=dict(ranks), special_tokens=special)
    return lambda text: encoding.encode(unicodedata.normalize("NFC", text), disallowed_special=())


def read_sentencepiece(path: Path):
    """``(processor, proto)`` of a sentencepiece model.

    Raises:
        CheckpointError: not such a file, or one that no fast tokenizer can express.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    content = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
        processor = SentencePieceProcessor(model_proto=content)
        num_pieces = processor.get_piece_size()
    except (DecodeError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path} is not a sentencepiece model, or damaged: {reason}") from None
    names, kinds = {piece.piece for piece in proto.pieces}, [piece.type for piece in proto.pieces]
    bytes_there = {piece.piece for piece in proto.pieces if piece.type == _BYTE}
    spec, unused = proto.normalizer_spec, [piece.piece for piece in proto.pieces if piece.type == _UNUSED]
    longest = max(map(len, names), default=0)
    white = proto.trainer_spec.treat_whitespace_as_suffix or spec.remove_extra_whitespaces
    wrong = {
        f"{len(kinds)} pieces, {len(names)} different ones": {len(names)} != {num_pieces, len(kinds)} or "" in names,
        f"a piece of {longest} characters": longest > MAX_PIECE,
        f"{kinds.count(_UNKNOWN)} pieces for what is unknown": kinds.count(_UNKNOWN) != 1,
        "not a BPE model (InternLM2's is)": proto.trainer_spec.model_type != 2,
        f"{len(bytes_there)} of the 256 bytes to fall back on": bytes_there != {f"<0x{n:02X}>" for n in range(256)},
        "unused pieces that texts could grow together to": any(_grows_together(piece, names) for piece in unused),
        "another treatment of white space than InternLM2's": white or not spec.escape_whitespaces,
        "it replaces characters, which a fast tokenizer does differently in places": spec.precompiled_charsmap,
    }
    reason = next((reason for reason, is_so in wrong.items() if is_so), None)
    if reason:
        raise CheckpointError(f"{path} can't become a fast tokenizer: {reason}")
    return processor, proto


def _is_atom(piece) -> bool:
    """Whether sentencepiece never splits this piece in a text; spare ``[UNUSED...`` pieces aren't meant for texts."""
    return piece.type == _USER_DEFINED and not piece.piece.startswith("[UNUSED") and " " not in piece.piece


def _grows_together(piece: str, names: Collection[str]) -> bool:
    return any(piece[:n] in names and piece[n:] in names for n in range(1, len(piece)))


def _from_sentencepiece(path: Path, config: Mapping):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    processor, proto = read_sentencepiece(path)
    added = _added_tokens(path.parent, config, [piece.piece for piece in proto.pieces])
    converted = _spm_converter(path, {number: token.content for number, token in added.items()}).converted()
    # Checked before added tokens and <s> are put in, which sentencepiece doesn't have.
    atoms = [piece.piece for n, piece in enumerate(proto.pieces) if _is_atom(piece) and n not in added]
    _check(converted, lambda text: processor.encode(text), path, more=[f"a {atom}b" for atom in atoms[:5]])
    for number, token in sorted(added.items()):
        (converted.add_special_tokens if token.special else converted.add_tokens)([token])
        if converted.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{path.parent}: the added token {token.content} can't have the id {number}; ids must have no gap"
            )
    names = {
        key: _text(config.get(f"{key}_token", default))
        for key, default in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("pad", "</s>"))
    }
    for key, name in names.items():
        if name is not None and converted.token_to_id(name) is None:
            raise CheckpointError(f"{path.parent}: the {key} token {name} is not in the vocabulary")
    before = [names["bos"]] if config.get("add_bos_token", True) else []
    after = [names["eos"]] if config.get("add_eos_token", False) else []
    if before or after:
        converted.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(name, converted.token_to_id(name)) for name in dict.fromkeys(before + after)],
        )
    own = {f"{key}_token" for key in names}
    extra = [_text(token) for token in config.get("additional_special_tokens") or []]
    return PreTrainedTokenizerFast(
        tokenizer_object=converted,
        **{f"{key}_token": name for key, name in names.items()},
        additional_special_tokens=[token for token in extra if converted.token_to_id(token) is not None],
        model_max_length=_max_length(config),
        clean_up_tokenization_spaces=False,
        **{key: config[key] for key in ("padding_side", "chat_template") if key in config and key not in own},
    )


def _added_tokens(directory: Path, config: Mapping, pieces: list[str]) -> dict[int, object]:
    """Tokens by id that the directory renames in the vocabulary or appends to it."""
    from tokenizers import AddedToken

    positions = {piece: number for number, piece in enumerate(pieces)}
    try:
        listed = {int(number): fields for number, fields in (config.get("added_tokens_decoder") or {}).items()}
        contents = {number: fields["content"] for number, fields in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{directory}: the added tokens can't be read ({type(error).__name__}: {error})"
        ) from None
    for number, content in contents.items():
        if number < 0 or not content or positions.get(content, number) != number:
            raise CheckpointError(
                f"{directory}: the added token {content!r} with id {number} contradicts the vocabulary"
            )
    flags = ("lstrip", "rstrip", "single_word", "special")
    return {
        number: AddedToken(content, normalized=False, **{flag: bool(listed[number].get(flag, False)) for flag in flags})
        for number, content in contents.items()
    }


def _spm_converter(path: Path, names: Mapping[int, str]):
    """The converter of transformers, with pieces renamed and merges that only lead to ordinary pieces.

    The general converter merges a text such as ``<0x0A>`` or a control token's name to that piece; sentencepiece never.

    Args:
        path: of the sentencepiece model.
        names: piece id to the name that the directory gives it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import SpmConverter, generate_merges

    class Converter(SpmConverter):
        handle_byte_fallback = True

        def vocab(self, proto):
            return [(names.get(n, piece.piece), piece.score) for n, piece in enumerate(proto.pieces)]

        def tokenizer(self, proto):
            plain = {p.piece: (n, p.score) for n, p in enumerate(proto.pieces) if p.type == _PLAIN and n not in names}
            merges = generate_merges(
                {piece: n for piece, (n, _) in plain.items()}, [(piece, score) for piece, (_, score) in plain.items()]
            )
            vocab = {piece: n for n, (piece, _) in enumerate(self.vocab(proto))}
            unknown = next(name for name, n in vocab.items() if proto.pieces[n].type == _UNKNOWN)
            tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
            atoms = [p.piece for n, p in enumerate(proto.pieces) if _is_atom(p) and n not in names]
            tokenizer.add_tokens([AddedToken(piece, normalized="▁" in piece, special=False) for piece in atoms])
            return tokenizer

        def normalizer(self, proto):
            prefix = [normalizers.Prepend("▁")] if proto.normalizer_spec.add_dummy_prefix else []
            return normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])

        def pre_tokenizer(self, replacement, add_prefix_space):
            return None

        def decoder(self, replacement, add_prefix_space):
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            prefixed = self.proto.normalizer_spec.add_dummy_prefix
            return decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefixed else steps)

    return Converter(SimpleNamespace(vocab_file=str(path)))


def _text(token) -> str | None:
    """A token's content; configs hold it alone or with its flags."""
    return token.get("content") if isinstance(token, Mapping) else token


def _max_length(config: Mapping) -> int:
    value = config.get("model_max_length")
    return int(value) if isinstance(value, (int, float)) and 0 < value < 10**30 else 10**30


def _check(tokenizer, reference: Callable[[str], list[int]], path: Path, more: Iterable[str] = ()) -> None:
    """Compares ids of ``SAMPLES`` (and ``more``) with those of the library that the vocabulary was made for."""
    for text in (*SAMPLES, *more):
        ids, expected = tokenizer.encode(text, add_special_tokens=False).ids, reference(text)
        if ids != expected:
            raise CheckpointError(
                f"{path} can't become a fast tokenizer exactly: {text!r} would give {ids[:20]} instead of "
                f"{expected[:20]}; put a tokenizer.json beside it"
            )


CONVERTERS: dict[str, tuple[str, Callable]] = {
    "InternLM2Tokenizer": ("tokenizer.model", _from_sentencepiece),
    "QWenTokenizer": ("qwen.tiktoken", _from_tiktoken),
}
