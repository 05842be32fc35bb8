"""Tiny random language models of every family, as directories in their published layouts."""

import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from tests.weights.vocabularies import toy_ranks, write_internlm2, write_qwen
from xtuner_plugins.weights import internlm2, qwen1
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
    mapping = internlm2.keys(SIZES) if family == "internlm2" else qwen1.KEYS
    held = mapping.to_left({name: MemoryTensor(tensor) for name, tensor in model.state_dict().items()})
    buffers = {"transformer.rotary_emb.inv_freq": torch.ones(4)} if family == "qwen" else {}  # old releases have them
    save_file({name: each.read() for name, each in held.items()} | buffers, folder / "model.safetensors")
    own = {**SIZES, **ids, **INTERNLM2} if family == "internlm2" else {**QWEN, "vocab_size": ids["vocab_size"]}
    write_json(folder / "config.json", {**own, "tie_word_embeddings": False})
    return folder
