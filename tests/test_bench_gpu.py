"""The measurement of a GPU: its rows run on a CPU at a tiny size, fail alone, and need few packages."""

import json
import os
import signal
import subprocess
import sys

import torch

from benchmarks import bench_gpu
from tests.conftest import ROOT

# A stranger's machine: PyTorch, transformers, peft and what they and MMEngine need.
MISSING = "deepspeed cv2 bitsandbytes xtuner datasets pyarrow gradio av torchvision sentencepiece matplotlib"
HIDE = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec
missing = {MISSING.split()}
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.partition(".")[0] in missing else find(name, *args)
)
"""


def test_rows_need_torch_transformers_peft_and_mmengine_and_fail_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    command = [sys.executable, ROOT / "benchmarks/bench_gpu.py", "--dry-run", "--out", tmp_path / "out.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "--steps", "2"], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and (tmp_path / "out.jsonl").read_text() == done.stdout, done.stderr
    rows = {line["row"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == list(bench_gpu.ROWS) and "bitsandbytes" in rows["qlora"]["error"]
    for name in ("full", "lora", "warm-up"):
        row = rows[name]
        assert row["mfu"] == row["measured_gib"] == bench_gpu.NEEDS_CUDA and 6 < row["loss"] < 8  # ln(1000) is 6.9
        assert row["planned_gib"]["tensors"] < row["planned_gib"]["all"]
        assert len(row["seconds"]) == len(row["tokens_per_second"]) == 3
    parts = rows["kernels"]
    assert all(parts[name]["kinds"] == ["flash"] for name in ("encoder", "llm", "backward")) and "optimizer" in parts


def test_a_row_that_dies_ends_alone(monkeypatch, tmp_path, capsys):
    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")

    monkeypatch.setattr(bench_gpu, "machine", out_of_memory)
    monkeypatch.setattr(bench_gpu, "kernels", lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(bench_gpu, "stage", lambda trainer, count: {"steps": count})
    words = ["--dry-run", "--steps", "3", "--rows", "machine", "kernels", "full", "--out", str(tmp_path / "out.jsonl")]
    assert bench_gpu.main(words) == 1
    first, second, third = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"
    assert second["error"].startswith("BrokenProcessPool: ") and third == {"row": "full", "steps": 3}


NAMES = {
    "torch_attn::_varlen_attn_backward": "varlen",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 64>>(Params)": "flash",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<bf16>)": "mem-efficient",
    "aten::_scaled_dot_product_efficient_attention": "mem-efficient",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_kernel0_0": "cudnn",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::scaled_dot_product_attention": None,  # what chooses
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": None,
}


def test_names_of_operators_and_kernels_tell_the_kind_of_attention():
    assert {name: bench_gpu.kind_of(name) for name in NAMES} == NAMES
