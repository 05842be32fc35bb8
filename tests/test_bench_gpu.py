"""The measurement of a GPU: its rows run on a CPU at a tiny size, fail alone, and need few packages."""

import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_gpu
from tests.conftest import ROOT

SCRIPT = str(ROOT / "benchmarks" / "bench_gpu.py")
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


def dry_run(folder, *args, hide=HIDE):
    """The lines of a dry run by row, where packages are missing; those in the file are the same."""
    (folder / "sitecustomize.py").write_text(hide)
    command = [sys.executable, SCRIPT, "--dry-run", "--out", str(folder / "out.jsonl"), *args]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out.jsonl").read_text() == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: [line for line in lines if line["row"] == name] for name in {line["row"] for line in lines}}


def test_all_rows_but_two_need_torch_transformers_peft_and_mmengine(tmp_path):
    rows = [row for row in bench_gpu.ROWS if row != "compile"]  # tracing takes seconds
    found = dry_run(tmp_path, "--rows", *rows)
    assert set(found) == {*rows, "end"} and found["end"][0]["left"] == []
    assert found["qlora"][0]["skipped"] == "needs bitsandbytes"
    assert found["machine"][0]["skipped"] == found["waits"][0]["skipped"] == "needs CUDA"

    for name in ("full", "lora", "warm-up"):
        [line] = found[name]
        assert line["mfu"] == line["measured_gib"] == "needs CUDA" and len(line["seconds"]) == 3
        assert line["planned_gib"]["tensors"] < line["planned_gib"]["all"]
    full, padded = (found[name][0]["loss"] for name in ("full", "padded"))  # of the same weights and samples
    assert full == pytest.approx(padded, rel=1e-5)

    parts = {(line["stage"], line["part"]): line for line in found["kernels"]}
    for stage in ("lora", "full"):
        assert parts[stage, "encoder"]["attention"] == {"flash": 2}  # one call per block
        assert parts[stage, "llm"]["attention"]["flash"] > 2  # and here one per block and sample
        assert parts[stage, "backward"]["attention"]["flash"] > 2
        assert parts[stage, "optimizer"]["adamw"] in ("one by one", "foreach")
    assert all(line["equal_losses"] and line["equal_weights"] for line in found["repeat"])

    ways = {(line["head_dim"], line["layout"], line["way"]): line for line in found["attention"]}
    assert len(ways) == 4 * 3 * 2
    for (*_, way), line in ways.items():
        if way == "varlen":
            assert line["skipped"] == "needs CUDA"
        else:
            assert max(line["max_error"].values()) < 1e-5  # float32 against float32
    assert [line["way"] for line in found["loss-chunks"]] == ["2**28", "2**27", "2**25"]
    assert len(found["lora-cast"]) == len(found["encoder-autocast"]) == 2


@pytest.mark.slow
def test_packed_weights_and_compiled_blocks_run_too(tmp_path):
    found = dry_run(tmp_path, "--rows", "qlora", "compile", hide="")
    assert found["qlora"][0]["loss"] > 0 and [line["way"] for line in found["compile"]] == ["eager", "compiled"]


def out_of_memory(bench):
    yield {"before": 1}
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")


def killed(bench):
    yield {"before": 2}
    os.kill(os.getpid(), 9)


def test_a_row_that_dies_ends_alone_and_rows_that_the_budget_leaves_are_named(monkeypatch, tmp_path):
    """Rows of this file; what the second has found before it died is kept."""
    monkeypatch.setattr(bench_gpu, "ROWS", {name: ("of_a_test", name) for name in ("out_of_memory", "killed", "fine")})
    module = SimpleNamespace(out_of_memory=out_of_memory, killed=killed, fine=lambda bench: [{"steps": bench.steps}])
    monkeypatch.setitem(sys.modules, "benchmarks.of_a_test", module)
    for words, status, wanted in (
        ([], 1, [
            {"row": "out_of_memory", "before": 1},
            {"row": "out_of_memory", "error": "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"},
            {"row": "killed", "before": 2},
            {"row": "killed", "error": "the process ended with status -9"},
            {"row": "fine", "steps": 2},
            {"row": "end", "budget_s": 600, "left": []},
        ]),
        ("--budget-s 0 --rows fine killed".split(), 0, [{"row": "end", "budget_s": 0, "left": ["fine", "killed"]}]),
    ):  # fmt: skip
        assert bench_gpu.main(["--dry-run", "--out", str(tmp_path / "out.jsonl"), *words]) == status
        lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert [{key: value for key, value in line.items() if key != "at_s"} for line in lines] == wanted


KINDS = {
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
    from benchmarks.gpu_kernels import ATTENTION, kind_of

    assert {name: kind_of(name, ATTENTION) for name in KINDS} == KINDS


def test_a_wait_within_forward_and_backward_is_told_from_those_elsewhere(monkeypatch):
    """PyTorch's debug mode needs CUDA, so its two reactions stand in for it."""
    from benchmarks import gpu_rows

    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda value: mode.append(value))

    def wait():
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if mode[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def trainer_of(inside):
        def step(number):
            gpu_rows.steps._accumulate(inside)
            wait()

        return SimpleNamespace(step=step)

    monkeypatch.setattr(gpu_rows.steps, "_accumulate", lambda inside: inside())
    found = gpu_rows.waits_of(trainer_of(lambda: None))
    assert found["in_forward_and_backward"] == "none"
    assert [line.partition(":")[0] for line in found["elsewhere_in_the_step"]] == ["test_bench_gpu.py"]
    found = gpu_rows.waits_of(trainer_of(wait))
    assert found["in_forward_and_backward"][-1].startswith("test_bench_gpu.py:") and mode[-1] == "default"
