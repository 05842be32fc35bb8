"""A small but real Qwen2 tokenizer, trained on the spot.

Except for its size it is like the published Qwen2.5 tokenizers: NFC, Qwen2's splitting pattern (a digit is always a
token of its own), byte-level BPE, special tokens after the vocabulary, the same files.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from xtuner_plugins.hub.conversation import INTERNVL2_5_SYSTEM
from xtuner_plugins.toy.language import corpus
from xtuner_plugins.weights.fast_tokenizers import QWEN_PATTERN
from xtuner_plugins.weights.writer import write_json

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{INTERNVL2_5_SYSTEM}<|im_end|>\\n' }}}}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(out_dir: str | Path, *, vocab_size: int = 2048, texts: Iterable[str] | None = None) -> Path:
    """Trains a byte-level BPE and writes it as a Qwen2 tokenizer directory.

    The same texts give the same bytes on disk, in any process.

    Args:
        out_dir: Made when missing. Gets `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json`
            and `special_tokens_map.json`; other files in it stay.
        vocab_size: Most bytes (256) plus merges; a small corpus may give fewer. The three special tokens follow.
        texts: What to train on; None takes the toy language's own corpus.

    Returns:
        `out_dir` as a path.
    """
    tokenizer = Tokenizer(BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    single = {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    trainer = BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False, **single)
    tokenizer.train_from_iterator(corpus() if texts is None else texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_files(json.loads(tokenizer.to_str()), out_dir)
    return out_dir


def _write_files(state: dict, out_dir: Path) -> None:
    """Writes the five files from the fast tokenizer's own state, merges as "a b" strings.

    Older `tokenizers` can't read the list form of merges that 0.20 and later save; all read the strings.
    """
    model = state["model"]
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    added = {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in state["added_tokens"]}
    end, pad = "<|im_end|>", "<|endoftext|>"
    special = {"additional_special_tokens": ["<|im_start|>", end], "eos_token": end, "pad_token": pad}
    config = dict.fromkeys(("add_bos_token", "add_prefix_space", "clean_up_tokenization_spaces"), False)
    config |= {**special, "bos_token": None, "unk_token": None, "split_special_tokens": False}
    config |= {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 4096, "errors": "replace"}
    config |= {"chat_template": CHAT_TEMPLATE, "added_tokens_decoder": {str(key): added[key] for key in sorted(added)}}

    files = {"tokenizer": state, "vocab": model["vocab"], "tokenizer_config": config, "special_tokens_map": special}
    for name, content in files.items():
        write_json(out_dir / f"{name}.json", content)
    (out_dir / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n", encoding="utf-8")
