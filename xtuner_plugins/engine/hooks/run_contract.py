"""What a run trains, read from its live objects before the first step: shown as a table, kept as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine._strategy.deepspeed import MMDeepSpeedEngineWrapper
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from ...datasets import MultimodalDataset
from ...datasets.figures import file_figures
from ...dtypes import describe_dtype
from ...files import write_whole
from ..run.loops import planned_loop
from ..run.param_groups import group_members, num_weights
from ..run.steps import unwrap

CONTRACT_FILE = "run_contract.json"  # in the work directory
TITLE = "What this run trains:"


@HOOKS.register_module()
class RunContractHook(Hook):
    """Shows before the first step what the run trains, as the model, the optimizer and the data hold it.

    The same is written as JSON to ``run_contract.json`` in the work directory.
    """

    priority = "VERY_LOW"

    def before_train(self, runner) -> None:
        """Shows and writes the contract."""
        contract = gather(runner)
        if is_main_process():
            runner.logger.info(show(contract))
            text = json.dumps(contract, indent=2, ensure_ascii=False) + "\n"
            path = Path(runner.work_dir, CONTRACT_FILE)
            write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def gather(runner) -> dict[str, Any]:
    """The contract of a run before its first step, as JSON can hold it; None stands for what isn't known.

    The ranks don't wait for each other here, and only rank 0 looks at samples.
    """
    network, optimizer = unwrap(runner.model), runner.optim_wrapper.optimizer
    dataset, plan = runner.train_dataloader.dataset, planned_loop(runner).dataloader_iterator.plan
    looks = is_main_process() and isinstance(dataset, MultimodalDataset)
    files = file_figures(dataset) if looks else []
    strategy = f"DDP on {runner.world_size} ranks" if runner.world_size > 1 else "one process"
    if isinstance(runner.model, MMDeepSpeedEngineWrapper):
        strategy = describe_engine(runner.model.model)
    if plan.copies > 1:
        strategy += f"; {plan.copies} ranks share each row"
    groups = []
    for members, group in zip(group_members(optimizer), optimizer.param_groups, strict=True):
        lr = group.get("initial_lr", group["lr"])  # the schedule multiplies it; during warm-up it is lower
        counts = {"parameters": sum(map(num_weights, members)), "lr": lr}
        groups.append({**counts, "weight_decay": group.get("weight_decay", 0.0)})
    dtype = runner.cfg.model.get("dtype", "auto"), network.dtype, next(network.parameters()).device
    return {
        "parts": [describe_part(name, part) for name, part in network.parts().items()],
        "optimizer": {"name": describe_optimizer(optimizer), "groups": groups},
        "strategy": strategy,
        "computes_in": describe_dtype(*dtype, "--set dtype="),
        "data": {"samples": len(dataset), "summary": plan.describe_data(), "files": files},
        "run": _describe_run(runner),
        "log": runner.logger.log_file,
    }


def _describe_run(runner) -> dict[str, Any]:
    """Steps, ranks and batches."""
    loop, loader = planned_loop(runner), runner.train_dataloader
    return {
        "steps": runner.max_iters,
        "done": runner.iter,
        "ranks": runner.world_size // loop.dataloader_iterator.plan.copies,
        "micro_batches": loop.micro_batches,
        "micro_batches_per_epoch": len(loader),
        "batch_size": loader.batch_sampler.batch_size,
        "seed": runner.seed,
    }


def describe_part(name: str, part: nn.Module) -> dict[str, Any]:
    """Trainable and frozen weights of a part, and the dtypes that they are held in, e.g. ``4-bit nf4, float32``."""
    counts, kinds = Counter(), set()
    for parameter in part.parameters():
        counts[parameter.requires_grad] += num_weights(parameter)
        packed = getattr(parameter, "quant_state", None)
        kinds.add(f"4-bit {packed.quant_type}" if packed else str(parameter.dtype).removeprefix("torch."))
    return {"part": name, "trainable": counts[True], "frozen": counts[False], "held_in": ", ".join(sorted(kinds))}


def describe_optimizer(optimizer: Any) -> str:
    """The live optimizer: class, library, and whether it is fused."""
    inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's ZeRO optimizers hold it
    fused = ", fused" if any(group.get("fused") for group in inner.param_groups) else ""
    return f"{type(inner).__name__} of {type(inner).__module__.partition('.')[0]}{fused}"


def describe_engine(engine: Any) -> str:
    """Stage of a live DeepSpeed engine, dtype of weights and of summed gradients."""
    weights, gradients = (str(dtype).removeprefix("torch.") for dtype in engine.get_data_types())
    text = f"ZeRO-{int(engine.zero_optimization_stage())}, weights in {weights}, gradients summed in {gradients}"
    if gradients != "float32":
        text += ': small ones are lost; set "data_types": {"grad_accum_dtype": "fp32"} in the file of --deepspeed'
    return text


def show(contract: Mapping[str, Any]) -> str:
    """The contract as the table that a run opens with."""
    data, run = contract["data"], contract["run"]
    lines = [TITLE, f"  {'part':<16}{'trainable':>16}{'frozen':>16}  held in"]
    lines += ["  {part:<16}{trainable:>16,}{frozen:>16,}  {held_in}".format(**row) for row in contract["parts"]]
    lines.append(f"  optimizer: {contract['optimizer']['name']}")
    group_line = "  optimizer group {}: {parameters:,} parameters, lr {lr:g}, weight decay {weight_decay:g}"
    lines += [group_line.format(index, **group) for index, group in enumerate(contract["optimizer"]["groups"])]
    lines += [f"  strategy: {contract['strategy']}", f"  computes in: {contract['computes_in']}"]
    lines += _show_files(data["files"])
    lines += [f"  {line}" for line in data["summary"].splitlines()]
    lines.append(f"  run: {run['steps']:,} optimizer steps, {run['done']:,} of them done")
    step = "  step: {micro_batches} micro-batches of {batch_size} on each of {ranks} ranks; "
    step += "{micro_batches_per_epoch:,} micro-batches per rank and epoch; seed {seed}"
    lines.append(step.format(**run))
    return "\n".join([*lines, f"  log file: {contract['log']}"])


def _show_files(files: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max([len("data"), *(len(each["name"]) for each in files)])
    heads = f"{'samples':>12}{'tokens':>10}{'supervised':>12}{'tiles':>8}  (mean of a sample)"
    lines = [f"  {'data':<{width}}{heads}"] if files else []
    for each in files:
        means = f"{each['tokens']:>10,.0f}{each['supervised']:>12,.0f}{each['tiles']:>8.1f}" if each["seen"] else ""
        lines.append(f"  {each['name']:<{width}}{each['samples']:>12,}{means}")
    return lines
