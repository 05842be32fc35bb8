"""Measures the export on checkpoints of the true shapes with random weights, beside `cp` of the same bytes.

    python benchmarks/bench_export.py --size 2b --kind full --work /data/bench
    python benchmarks/bench_export.py --size 8b --kind lora --work /data/bench

Prints peak resident memory of the export's process, wall times (medians) and their ratio as one JSON line, and removes
what it wrote. Without --sync, whatever of the sources was in memory stays there (an export waits for the disk anyway).

The base is InternVL2-shaped: InternViT-300M with InternLM2 (1.8b or 7b), whose fused qkv is split. It has no model
code, so the export is in transformers' form, whose LLM is a Llama. `full` is a float32 .pth of projector and LLM,
`lora` of rank 64 on all linear layers of the LLM plus the projector.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BASES = {"2b": "InternVL2-2B", "8b": "InternVL2-8B", "tiny": "InternVL2-2B"}
TINY = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 64


def official_config(size: str) -> dict:
    """The official `config.json` of a published size, or of one with a tiny language model."""
    from xtuner_plugins.planning import published

    base = published.BASES[BASES[size]]
    fields, half = base.config, {"torch_dtype": "bfloat16"}
    llm = fields["llm_config"] | dict(architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False)
    llm |= dict(hidden_act="silu", tie_word_embeddings=False, max_position_embeddings=32768) | half
    llm |= dict(rms_norm_eps=1e-5, rope_theta=1000000.0) | (TINY if size == "tiny" else {})
    vision = fields["vision_config"] | dict(architectures=["InternVisionModel"], num_channels=3, hidden_act="gelu")
    whole = dict(architectures=["InternVLChatModel"], model_type="internvl_chat", template=base.template, **half)
    whole |= dict(select_layer=-1, ps_version="v2", downsample_ratio=0.5, force_image_size=448, max_dynamic_patch=12)
    whole |= dict(dynamic_image_size=True, use_thumbnail=True, min_dynamic_patch=1)
    return whole | dict(llm_config=llm, vision_config=vision)


def our_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model as it trains (InternLM2 as Llama)."""
    from xtuner_plugins.weights import official
    from xtuner_plugins.weights.loader import config_from_fields, empty_model

    model = empty_model(config_from_fields(official.read_config(official_config(size), "."), "benchmark"))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def random_lazy(shape, dtype):
    """Random numbers of any shape from one block, so that making a checkpoint costs the disk and not the generator."""
    from xtuner_plugins.weights.lazy import LazyTensor

    block = (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)

    def rows(start, stop):
        count = (stop - start) * math.prod(shape[1:])
        return block.repeat(-(-count // block.numel()))[:count]

    return LazyTensor(dtype, shape, rows)


def write_base(folder: Path, size: str) -> None:
    from data_inputs import make_base

    from xtuner_plugins.weights import model_view, official, writer
    from xtuner_plugins.weights.lazy import MemoryTensor

    make_base(folder)  # for the tokenizer
    tensors = {
        name: MemoryTensor(torch.ones(shape, dtype=torch.bfloat16))
        if "norm" in name and name.endswith("weight")
        else random_lazy(shape, torch.bfloat16)
        for name, shape in our_shapes(size).items()
    }
    stored = model_view.keys_of(official, official_config(size)).to_theirs(tensors)
    writer.write_weights(folder, stored)
    writer.write_json(folder / "config.json", official_config(size))


def write_inputs(base: Path, checkpoint: Path, config: Path, size: str, kind: str) -> None:
    from tests.weights.training import save_pth

    write_base(base, size)
    state = {}
    for name, shape in our_shapes(size).items():
        inner = name.removeprefix("language_model.")
        if name.startswith("mlp1.") or (kind == "full" and inner != name):
            state[f"model.{name}"] = torch.full(shape, 0.01)
        elif inner != name and inner.split(".")[-2] in TARGETS:
            layer = name.removesuffix(".weight")
            state[f"model.{layer}.lora_A.default.weight"] = torch.randn(RANK, shape[1]) * 0.02
            state[f"model.{layer}.lora_B.default.weight"] = torch.randn(shape[0], RANK) * 0.02
    lora = f"llm_lora=dict(type=LoraConfig, r={RANK}, lora_alpha=128, target_modules={list(TARGETS)!r})"
    setting = "freeze_llm=False" if kind == "full" else lora
    config.write_text(f"from peft import LoraConfig\nmodel = dict(base={str(base)!r}, {setting})\n")
    save_pth(None, checkpoint, config, state=state)


def drop_from_memory(files: list[Path]) -> None:
    """Takes files out of the page cache, so that they are read from the disk."""
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list, *, sync: bool = False) -> dict:
    """Wall seconds (with ``sync`` until the disk has it all) and peak resident GiB of a process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(said.read()[-3000:])
    if sync:
        os.sync()
    return {"wall_s": time.perf_counter() - start, "peak_gib": usage.ru_maxrss / 2**20}


def measure(args: argparse.Namespace, base: Path, checkpoint: Path, config: Path) -> dict:
    """Exports and copies in turn; medians of seconds, the largest peak."""
    out, copy = args.work / "out", args.work / "copy"
    exports, copies = [], []
    for _ in range(args.repeats):
        for path in (out, copy):
            shutil.rmtree(path, ignore_errors=True)
        if args.sync:
            drop_from_memory([*base.iterdir(), checkpoint])
        tool = [sys.executable, ROOT / "tools/convert_to_official.py"]
        exports.append(timed([*tool, config, checkpoint, out, "--format", "hf"], sync=args.sync))
        if args.sync:
            drop_from_memory(list(out.iterdir()))
        copies.append(timed(["cp", "-r", out, copy], sync=args.sync))
    export_s, cp_s = (statistics.median(run["wall_s"] for run in runs) for runs in (exports, copies))
    return {
        "out_gb": round(sum(path.stat().st_size for path in out.iterdir()) / 1e9, 2),
        "checkpoint_gb": round(checkpoint.stat().st_size / 1e9, 2),
        "export_s": round(export_s, 1),
        "cp_s": round(cp_s, 1),
        "ratio": round(export_s / cp_s, 2),
        "peak_gib": round(max(run["peak_gib"] for run in exports), 2),
        "export_all_s": [round(run["wall_s"], 1) for run in exports],
        "cp_all_s": [round(run["wall_s"], 1) for run in copies],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(BASES), default="2b")
    parser.add_argument("--kind", choices=["full", "lora"], default="lora")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/bench_export"), help="new scratch directory")
    parser.add_argument("--repeats", type=int, default=3, help="runs of export and cp in turn")
    parser.add_argument("--sync", action="store_true", help="sources out of memory, time until results are on the disk")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    base, checkpoint, config = args.work / "base", args.work / "checkpoint.pth", args.work / "config.py"
    try:
        # In a process of its own, so that its memory is gone before anything is measured.
        inputs = multiprocessing.Process(target=write_inputs, args=(base, checkpoint, config, args.size, args.kind))
        inputs.start()
        inputs.join()
        found = measure(args, base, checkpoint, config)
        print(json.dumps({"size": args.size, "kind": args.kind, "sync": args.sync, **found}))
    finally:
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
