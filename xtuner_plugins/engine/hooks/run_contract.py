"""Shows before the first step what a run trains, and keeps it beside the checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..contract import gather, show
from ..curves import CONTRACT_FILE
from ..param_groups import planned_groups
from ..steps import unwrap


@HOOKS.register_module()
class RunContractHook(Hook):
    """Shows before the first step what the run trains, as the model, the optimizer and the data hold it.

    The same is written as JSON: to ``run_contract.json`` in the work directory, and once more in the folder of this
    start, where later starts leave it.

    Raises:
        RuntimeError: The optimizer doesn't hold exactly the trainable parameters, or not at the config's learning rates
            and weight decays.
    """

    priority = "VERY_LOW"

    def before_train(self, runner) -> None:
        """Shows and writes the contract, and checks the optimizer."""
        contract = gather(runner)
        if is_main_process():
            runner.logger.info(show(contract))
            text = json.dumps(contract, indent=2, ensure_ascii=False) + "\n"
            for folder in (Path(runner.log_dir), Path(runner.work_dir)):
                beside = folder / f"{CONTRACT_FILE}.partial"
                beside.write_text(text, encoding="utf-8")
                beside.replace(folder / CONTRACT_FILE)
        barrier()
        groups = [(row["parameters"], row["lr"], row["weight_decay"]) for row in contract["optimizer"]["groups"]]
        optimized = sum(count for count, _, _ in groups)
        trained = sum(row["trainable"] for row in contract["parts"])
        if optimized != trained:
            raise RuntimeError(
                f"the optimizer holds {optimized:,} parameters, but the model trains {trained:,}; "
                "check optim_wrapper.paramwise_cfg and the freeze_* settings"
            )
        _compare_groups(planned_groups(runner.cfg, unwrap(runner.model)), groups)


def _compare_groups(planned: dict[tuple[float, float], int] | None, groups: list[tuple[int, float, float]]) -> None:
    """Raises where the optimizer's learning rates and weight decays aren't the config's; None compares nothing."""
    if planned is None:
        return
    live: dict[tuple[float, float], int] = {}
    for count, lr, weight_decay in groups:
        live[lr, weight_decay] = live.get((lr, weight_decay), 0) + count

    def shown(rates: dict[tuple[float, float], int]) -> str:
        return "; ".join(f"{count:,} at lr {lr:g}, weight decay {wd:g}" for (lr, wd), count in sorted(rates.items()))

    def rounded(rates: dict[tuple[float, float], int]) -> list[tuple[str, str, int]]:
        return sorted((f"{lr:.6g}", f"{wd:.6g}", count) for (lr, wd), count in rates.items())

    if rounded(planned) != rounded(live):
        raise RuntimeError(
            f"the optimizer doesn't hold what the config asks for: it has {shown(live)}; the config asks for "
            f"{shown(planned)}"
        )
