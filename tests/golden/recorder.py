"""What a golden run keeps of each optimizer step."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.hooks import Hook

COLUMNS = ("step", "batch", "tokens", "supervised", "tiles", "lr", "loss", "grad_norm")  # causes first


class StepRecorder(Hook):
    """Writes a table with one row per optimizer step; its first line names the machine.

    Floats are written with all their digits. ``batch`` is a digest of the step's ids, labels and tiles, without
    padding; ``lr`` holds the rate of each parameter group that has another one than the groups before it.

    Args:
        out: The file to write.
    """

    def __init__(self, out: str):
        self.out = Path(out)

    def before_train(self, runner) -> None:
        self.out.write_text(f"# {machine()}\n" + "\t".join(COLUMNS) + "\n")

    def after_train_iter(self, runner, batch_idx: int, data_batch: Sequence[Mapping], outputs: Mapping) -> None:
        """Adds the row of a step, before the schedule sets the next rates."""
        digest = hashlib.sha256()
        for batch in data_batch:
            mask = batch["attention_mask"]
            for content in (batch["input_ids"][mask], batch["labels"][mask], *batch["tiles"]):
                digest.update(content.contiguous().numpy().tobytes())
        rates = dict.fromkeys(group["lr"] for group in runner.optim_wrapper.param_groups)
        row = (
            runner.iter + 1,
            digest.hexdigest()[:12],
            sum(int(batch["attention_mask"].sum()) for batch in data_batch),
            int(outputs["supervised_tokens"]),
            int(outputs["tiles"]),
            "/".join(map(repr, rates)),
            repr(outputs["loss"]),
            repr(float(runner.message_hub.get_scalar("train/grad_norm").current())),
        )
        with open(self.out, "a") as file:
            file.write("\t".join(map(str, row)) + "\n")


def machine() -> str:
    """Runs that agree on this agree to the last digit: PyTorch, its instruction set, threads and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    processor = [f"{key} {told[key]}" for key in ("model name", "cpu family", "model", "cache size") if key in told]
    kernels = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    return ", ".join([kernels, f"threads {torch.get_num_threads()}", platform.machine(), *processor])
