"""Parameter groups by ``optim_wrapper.paramwise_cfg``, under every strategy."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

# Keys of `optim_wrapper` that decide the groups; XTuner drops them under --deepspeed.
GROUPING = ("paramwise_cfg", "constructor")
KEPT_UNDER = "optim_wrapper_grouping"


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's rules of ``paramwise_cfg``, which skip frozen parameters, with one group per set of options.

    MMEngine makes one group per parameter, and ZeRO one flat buffer per group.
    """

    def __call__(self, model: nn.Module) -> Any:
        """Builds the optimizer wrapper of a model (inside DDP or not)."""
        model = getattr(model, "module", model)
        single: list[dict] = []
        self.add_params(single, model)
        merged: dict[tuple, dict] = {}
        for group in single:
            options = {key: value for key, value in group.items() if key != "params"}
            key = tuple(sorted(options.items()))
            merged.setdefault(key, {"params": [], **options})["params"].extend(group["params"])
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": list(merged.values())})
        return OPTIM_WRAPPERS.build(dict(self.optim_wrapper_cfg), default_args={"optimizer": optimizer})


def keep_grouping(cfg: Any) -> None:
    """Copies the settings that decide the groups to the top of the config, where XTuner doesn't drop them."""
    kept = {key: cfg.optim_wrapper[key] for key in GROUPING if cfg.optim_wrapper.get(key)}
    if kept:
        cfg[KEPT_UNDER] = kept


def settle_grouping(optim_wrapper: dict, cfg: Any) -> None:
    """Restores what `keep_grouping` copied, and adds `GroupedOptimWrapperConstructor` unless another is named."""
    for key, value in (cfg.get(KEPT_UNDER) or {}).items():
        optim_wrapper.setdefault(key, value)
    if optim_wrapper.get("paramwise_cfg"):
        optim_wrapper.setdefault("constructor", GroupedOptimWrapperConstructor.__name__)
