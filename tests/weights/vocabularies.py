"""Small vocabularies in the formats that InternLM2 and the first Qwen are published with, and texts for them."""

import base64
import io
import random
from pathlib import Path

import sentencepiece
from tokenizers import decoders, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.conftest import ROOT
from xtuner_plugins.weights.fast_tokenizers import SAMPLES
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

SPARE = tuple(f"[UNUSED_TOKEN_{n}]" for n in range(1, 7))
INTERNLM2_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
ADVERSE = ("<0x0A>", "<0x41><0x42>", "</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "[UNUSED_TOKEN_1]")


def corpus() -> list[str]:
    """Lines of several scripts, with names of pieces in them that no text may grow together to."""
    files = ("README.md", "README_zh-CN.md", "xtuner_plugins/families.py")
    lines = [line for name in files for line in (ROOT / name).read_text().splitlines()]
    letters = " ".join(map(chr, range(33, 127)))  # every character of ASCII is a piece
    repeated = [letters, *SAMPLES[:20], "a  b    c        d", "\n\n"] * 20
    return [*lines, *repeated, *[" ".join(ADVERSE[:4]) * 3] * 200]


def sentencepiece_model(vocab_size=1200, **settings) -> bytes:
    """A BPE model with InternLM2's settings, trained here; the spare pieces are the last."""
    writer = io.BytesIO()
    usual = dict(model_type="bpe", byte_fallback=True, split_digits=True, add_dummy_prefix=False, minloglevel=2)
    usual |= dict(remove_extra_whitespaces=False, normalization_rule_name="identity", character_coverage=0.999)
    usual |= dict(allow_whitespace_only_pieces=True, user_defined_symbols=list(SPARE), max_sentence_length=10**6)
    options = {**usual, "vocab_size": vocab_size, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=writer, **options)
    return writer.getvalue()


def write_internlm2(folder: Path, *, image_tokens=(), model: bytes | None = None, **fields) -> Path:
    """The tokenizer files of an InternLM2 directory: control tokens laid over spare pieces, image tokens after all."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model() if model is None else model
    (folder / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    numbers = {name: processor.piece_to_id(name) for name in ("<unk>", "<s>", "</s>")}
    numbers |= {new: processor.piece_to_id(old) for old, new in zip(SPARE, INTERNLM2_TOKENS, strict=True)}
    numbers |= {name: processor.get_piece_size() + n for n, name in enumerate(image_tokens)}
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    config = dict(bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=8192)
    config["added_tokens_decoder"] = {str(n): {"content": name, **flags} for name, n in numbers.items()}
    config["additional_special_tokens"] = [*INTERNLM2_TOKENS, *image_tokens]
    return write_tokenizer_config(folder, "InternLM2Tokenizer", **{**config, **fields})


def write_tokenizer_config(folder: Path, name: str, **fields) -> Path:
    """A tokenizer's config, and the code of its class, which must not run."""
    module = f"tokenization_{name.removesuffix('Tokenizer').lower()}"
    auto_map = {"AutoTokenizer": [f"{module}.{name}", None]}
    fields |= {"auto_map": auto_map, "tokenizer_class": name, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", fields)
    (folder / f"{module}.py").write_text("raise RuntimeError('code from the directory ran')\n")
    return folder


def with_scheme(tokenizer, scheme: str):
    """Sets where a converted SentencePiece tokenizer writes a space: `first`, `always`, `never` or `prepend...`."""
    backend, space = tokenizer.backend_tokenizer, normalizers.Replace(" ", "▁")
    if scheme.startswith("prepend"):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    else:
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    if scheme != "never":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
    return tokenizer


def toy_ranks(tokenizer_dir: Path) -> dict[bytes, int]:
    """The toy tokenizer's vocabulary as tokens of bytes in order of merging, single bytes first."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    model = read_json(tokenizer_dir / "tokenizer.json")["model"]
    merged = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    names = ["".join(merge) for merge in merged]
    tokens = [bytes([n]) for n in range(256)] + [bytes(letters[c] for c in name) for name in names]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def write_qwen(folder: Path, ranks: dict[bytes, int]) -> Path:
    """The tokenizer files of a Qwen (v1) directory."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    return write_tokenizer_config(folder, "QWenTokenizer", model_max_length=8192)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of many scripts, runs of one character, white space and control characters."""
    generator, blocks = random.Random(seed), ((0, 0x250), (0x370, 0x600), (0x900, 0x980), (0xE00, 0xE80))
    blocks += ((0x1100, 0x1200), (0x2000, 0x2100), (0x3040, 0x3100), (0x4E00, 0x5000), (0x1F300, 0x1F680))
    letters = [chr(n) for first, last in blocks for n in range(first, last)]
    words = [word + " " for line in corpus() for word in line.split(" ")]
    pools = letters, words, [*"\n\t=-#a哈1. \x00", "  ", "\r\n", "'s"]
    runs = (1, 1, 1, 1, 1, 1, 2, 3, 9, 20)
    drawn = [generator.choices(pools[number % 3], k=generator.randint(1, 20)) for number in range(count)]
    return ["".join(each * generator.choice(runs) for each in pieces) for pieces in drawn]
