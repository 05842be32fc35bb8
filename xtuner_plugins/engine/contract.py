"""What a run trains, read from its live objects: gathered as JSON, shown as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from mmengine._strategy.deepspeed import MMDeepSpeedEngineWrapper
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from torch import nn

from ..datasets import MultimodalDataset
from ..datasets.figures import FileFigures, file_figures
from ..planning.hardware import UTILIZATION, gpu_of_device
from ..planning.job import Batch
from ..planning.memory import GIB
from ..planning.plan import Lengths, largest_batches, lengths_of, model_of, plan_run
from ..planning.report import duration
from ..planning.strategies import from_deepspeed, plain
from ..planning.work import seconds
from ..settings import ConfigError
from .loops import planned_loop
from .optimizers import describe_optimizer
from .param_groups import group_members, num_weights
from .steps import unwrap

TITLE = "What this run trains:"


def gather(runner) -> dict[str, Any]:
    """The contract of a run, before its first step. The ranks don't wait for each other here.

    Returns:
        ``parts``, ``optimizer``, ``strategy``, ``data``, ``run``, ``estimate``, ``checkpoints``, ``log``: as JSON can
        hold them. What isn't known is None. Only rank 0 looks at samples and plans.
    """
    model, loop = unwrap(runner.model), planned_loop(runner)
    loader, dataset = runner.train_dataloader, runner.train_dataloader.dataset
    steps, done = runner.max_iters, runner.iter
    looks = is_main_process() and isinstance(dataset, MultimodalDataset)
    files = file_figures(dataset) if looks else []
    per_step = loop.micro_batches * runner.world_size
    items = {"batch_size": loader.batch_sampler.batch_size} if loop.dataloader_iterator.plan.is_seekable else {}
    contract = {
        "parts": [
            {"part": name, "trainable": counts[0], "frozen": counts[1], "held_in": held_in(part)}
            for name, part in model.parts().items()
            for counts in [count_parameters(part)]
        ],
        "optimizer": {
            "name": describe_optimizer(runner.optim_wrapper.optimizer),
            "groups": [
                {"parameters": count, "lr": lr, "weight_decay": decay}
                for count, lr, decay in optimizer_groups(runner.optim_wrapper.optimizer)
            ],
        },
        "strategy": describe_strategy(runner),
        "data": {
            "samples": len(dataset),
            "summary": loop.dataloader_iterator.plan.describe_data(),
            "files": [{name: _finite(value) for name, value in asdict(each).items()} for each in files],
        },
        "run": {
            "steps": steps,
            "done": done,
            "epochs": loop.planned_epochs,
            "ranks": runner.world_size,
            "micro_batches": loop.micro_batches,
            "micro_batches_per_epoch": len(loader),
            **items,
            "seed": runner.seed,
        },
        "checkpoints": [
            {"interval": hook.interval, "kept": hook.max_keep_ckpts, "resumable": hook.save_optimizer}
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook)
        ],
        "log": runner.logger.log_file,
    }
    contract["run"]["tokens"] = _tokens_of_run(files, len(loader) * runner.world_size, steps * per_step)
    contract["estimate"] = estimate(runner, files, contract["run"]["tokens"]) if is_main_process() else None
    return contract


def _tokens_of_run(files: Sequence[FileFigures], batches_per_epoch: int, batches: int) -> int | None:
    """Tokens of all steps, from the means of the files; None where nobody has looked."""
    mean = mean_sample(files)
    if mean is None:
        return None
    samples = sum(each.samples for each in files)
    return round(samples * mean.tokens * batches / max(batches_per_epoch, 1))


def mean_sample(files: Sequence[FileFigures]) -> Batch | None:
    """An average sample of a mixture; None without figures."""
    known = [each for each in files if each.seen]
    total = sum(each.samples for each in known)
    if not total:
        return None

    def mean(name: str) -> int:
        return round(sum(each.samples * getattr(each, name) for each in known) / total)

    return Batch(mean("tokens"), mean("tiles"), mean("supervised"))


def estimate(runner, files: Sequence[FileFigures], tokens: int | None) -> dict[str, Any]:
    """Memory and time as `planning` has them; on a machine without a known GPU there is no time.

    Returns:
        ``memory_gib`` per rank on a GPU, ``seconds``, ``gpu``, ``utilization``, and ``note``, why something is missing.
    """
    nothing = {"memory_gib": None, "seconds": None, "gpu": None, "utilization": None, "note": None}
    try:
        settings = runner.cfg._to_lazy_dict()
        model, mean = model_of(settings["model"]["base"]), mean_sample(files)
        if mean is None or all(each.is_measured for each in files):
            lengths = lengths_of(settings, model)
        else:
            lengths = Lengths(sum(each.samples for each in files), mean, largest_batches(settings, model.shape), "")
        planned = plan_run(settings, model, _strategy(runner), lengths=lengths)
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        return {**nothing, "note": f"no estimate: {str(error) or type(error).__name__}"}
    found = {**nothing, "memory_gib": planned.memory.total / GIB}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    gpu = gpu_of_device(name)
    if gpu is None or tokens is None:
        why = f"the speed of {name} isn't known" if name else "there is no GPU"
        return {**found, "note": f"no time in advance: {why}; the first lines of the run tell it"}
    operations = planned.work.total * tokens / max(lengths.mean.tokens, 1)
    took = seconds(operations, runner.world_size, gpu.teraflops, UTILIZATION)
    return {**found, "seconds": took, "gpu": gpu.name, "utilization": UTILIZATION}


def _strategy(runner):
    engine_settings = (runner.cfg.get("strategy") or {}).get("config")
    if not isinstance(runner.model, MMDeepSpeedEngineWrapper) or engine_settings is None:
        return plain(runner.world_size)
    return from_deepspeed(describe_strategy(runner), engine_settings, runner.world_size)


def describe_strategy(runner) -> str:
    """How the run is spread over its ranks."""
    if isinstance(runner.model, MMDeepSpeedEngineWrapper):
        return describe_engine(runner.model.model)
    return f"DDP on {runner.world_size} ranks" if runner.world_size > 1 else "one process"


def show(contract: Mapping[str, Any]) -> str:
    """The contract as the table that a run opens with."""
    lines = [TITLE, f"  {'part':<16}{'trainable':>16}{'frozen':>16}  held in"]
    for row in contract["parts"]:
        lines.append(f"  {row['part']:<16}{row['trainable']:>16,}{row['frozen']:>16,}  {row['held_in']}")
    lines.append(f"  optimizer: {contract['optimizer']['name']}")
    for index, group in enumerate(contract["optimizer"]["groups"]):
        rates = f"lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        lines.append(f"  optimizer group {index}: {group['parameters']:,} parameters, {rates}")
    lines += [f"  strategy: {contract['strategy']}", *_data_lines(contract["data"]), *_run_lines(contract["run"])]
    lines.append(f"  {_estimate_line(contract['estimate'])}")
    for row in contract["checkpoints"]:
        if not row["resumable"]:
            lines.append("  checkpoints: weights only (save_optimizer=False): not resumable")
    return "\n".join([*lines, f"  log file: {contract['log']}"])


def _data_lines(data: Mapping[str, Any]) -> list[str]:
    lines = []
    if data["files"]:
        width = max(len("data"), *(len(each["name"]) for each in data["files"]))
        heads = f"{'samples':>12}{'tokens':>10}{'supervised':>12}{'tiles':>8}"
        lines.append(f"  {'data':<{width}}{heads}  (mean of a sample)")
    for each in data["files"]:
        means = f"{each['tokens']:>10,.0f}{each['supervised']:>12,.0f}{each['tiles']:>8.1f}" if each["seen"] else ""
        note = "" if each["is_measured"] else f"  seen: {each['seen']:,}, lengths aren't measured"
        lines.append(f"  {each['name']:<{width}}{each['samples']:>12,}{means}{note}")
    return lines + [f"  {line}" for line in data["summary"].splitlines()]


def _run_lines(run: Mapping[str, Any]) -> list[str]:
    batch = f" of {run['batch_size']}" if "batch_size" in run else ""
    tokens = "" if run["tokens"] is None else f", about {run['tokens']:,} tokens"
    return [
        f"  run: {run['steps']:,} optimizer steps, {run['done']:,} of them done{tokens}",
        f"  step: {run['micro_batches']} micro-batches{batch} on each of {run['ranks']} ranks; "
        f"{run['micro_batches_per_epoch']:,} micro-batches per rank and epoch; seed {run['seed']}",
    ]


def _estimate_line(found: Mapping[str, Any]) -> str:
    if found["memory_gib"] is None:
        return found["note"]
    memory = f"planned: {found['memory_gib']:.1f} GiB on each GPU"
    if found["seconds"] is None:
        return f"{memory}; {found['note']}"
    return f"{memory}, {duration(found['seconds'])} on {found['gpu']} at {found['utilization']:.0%} of its peak"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count_parameters(part: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters of a part."""
    counts = {True: 0, False: 0}
    for parameter in part.parameters():
        counts[parameter.requires_grad] += num_weights(parameter)
    return counts[True], counts[False]


def held_in(part: nn.Module) -> str:
    """The dtypes that a part's weights are held in, e.g. ``4-bit nf4, float32``."""
    return ", ".join(sorted({_kind(parameter) for parameter in part.parameters()}))


def _kind(parameter: nn.Parameter) -> str:
    if getattr(parameter, "quant_state", None) is not None:
        return f"4-bit {parameter.quant_state.quant_type}"
    return str(parameter.dtype).removeprefix("torch.")


def optimizer_groups(optimizer: Any) -> list[tuple[int, float, float]]:
    """(number of weights, base learning rate, weight decay) of each group, as the optimizer holds them.

    The schedule multiplies the base learning rate; during warm-up the current one is lower.
    """
    return [
        (sum(map(num_weights, parameters)), group.get("initial_lr", group["lr"]), group.get("weight_decay", 0.0))
        for parameters, group in zip(group_members(optimizer), optimizer.param_groups, strict=True)
    ]


def describe_engine(engine: Any) -> str:
    """What a live DeepSpeed engine does, for the run contract: stage, dtype of weights and of summed gradients."""
    weights, gradients = (str(dtype).removeprefix("torch.") for dtype in engine.get_data_types())
    text = f"ZeRO-{int(engine.zero_optimization_stage())}, weights in {weights}, gradients summed in {gradients}"
    if gradients != "float32":
        text += ': small ones are lost; set "data_types": {"grad_accum_dtype": "fp32"} in the file of --deepspeed'
    return text
