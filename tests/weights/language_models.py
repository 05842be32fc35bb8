"""Tiny random language models of every family, as directories in their published layouts, with their vocabularies."""

import base64
import io
import random
import shutil
from pathlib import Path

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.conftest import ROOT
from xtuner_plugins.weights import languages
from xtuner_plugins.weights.fast_tokenizers import SAMPLES
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.tokenizer_files import load_tokenizer
from xtuner_plugins.weights.writer import write_json

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SIZES |= dict(tie_word_embeddings=False, torch_dtype="float32")
MOE = dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
# Family: how transformers' classes begin, and fields of its config.
CLASSES = {
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3_moe": ("Qwen3Moe", MOE),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", dict(sliding_window=4)),
    "phi3": ("Phi3", dict(pad_token_id=0)),
}
INTERNLM2 = dict(model_type="internlm2", architectures=["InternLM2ForCausalLM"], bias=False, hidden_act="silu")
INTERNLM2 |= dict(rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=512)
INTERNLM2 |= dict(rope_scaling={"type": "dynamic", "factor": 2.0})
QWEN = dict(model_type="qwen", architectures=["QWenLMHeadModel"], hidden_size=64, intermediate_size=192)
QWEN |= dict(num_hidden_layers=2, num_attention_heads=4, layer_norm_epsilon=1e-6, rotary_emb_base=10000, seq_length=512)


def write_llm(family: str, folder: Path, tokenizer_dir: Path, *, own_vocabulary: bool = False) -> Path:
    """Writes a random model of a family (`CLASSES`, internlm2 or qwen, the first Qwen) beside a tokenizer.

    The tokenizer is that of `tokenizer_dir`, a language model; InternLM2 and Qwen may have one of their own.
    """
    shutil.copytree(tokenizer_dir, folder)
    (folder / "model.safetensors").unlink()
    ids = {k: read_json(tokenizer_dir / "config.json")[k] for k in ("vocab_size", "bos_token_id", "eos_token_id")}
    if own_vocabulary:
        for path in [*folder.glob("*token*"), folder / "vocab.json", folder / "merges.txt"]:
            path.unlink()
        own = write_internlm2(folder) if family == "internlm2" else write_qwen(folder, toy_ranks(tokenizer_dir))
        tokenizer = load_tokenizer(own, complete=False)
        ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    name, fields = CLASSES.get(family, ("Qwen2", dict(num_key_value_heads=4)) if family == "qwen" else ("Llama", {}))
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **ids, **fields})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, float("norm" in name), 0.1)
    if family in CLASSES:
        model.save_pretrained(folder)
        return folder
    _, keys = languages.LANGUAGES[family]
    held = keys(SIZES).to_theirs({name: MemoryTensor(tensor) for name, tensor in model.state_dict().items()})
    buffers = {"transformer.rotary_emb.inv_freq": torch.ones(4)} if family == "qwen" else {}  # old releases have them
    save_file({name: each.read() for name, each in held.items()} | buffers, folder / "model.safetensors")
    own = {**SIZES, **ids, **INTERNLM2} if family == "internlm2" else {**QWEN, "vocab_size": ids["vocab_size"]}
    write_json(folder / "config.json", {**own, "tie_word_embeddings": False})
    return folder


SPARE = tuple(f"[UNUSED_TOKEN_{n}]" for n in range(1, 7))
INTERNLM2_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
ADVERSE = ("<0x0A>", "<0x41><0x42>", "</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "[UNUSED_TOKEN_1]")


def corpus() -> list[str]:
    """Lines of several scripts, with names of pieces in them that no text may grow together to."""
    files = ("README.md", "README_zh-CN.md", "xtuner_plugins/families.py")
    lines = [line for name in files for line in (ROOT / name).read_text().splitlines()]
    letters = " ".join(map(chr, range(33, 127)))  # every character of ASCII is a piece
    return lines + [letters, *SAMPLES, "a  b    c        d", "\n\n"] * 20 + [" ".join(ADVERSE[:4]) * 3] * 200


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
