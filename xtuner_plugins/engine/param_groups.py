"""Parameter groups by ``optim_wrapper.paramwise_cfg``, under every strategy."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

# What of `optim_wrapper` decides the groups; XTuner drops it where --deepspeed is given.
GROUPING = ("paramwise_cfg", "constructor")
KEPT_UNDER = "optim_wrapper_grouping"


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's rules of ``paramwise_cfg``, with one group per set of options and without frozen parameters.

    MMEngine makes one group per parameter; ZeRO flattens group by group and can't flatten a group that is all frozen.
    """

    def __call__(self, model: nn.Module) -> Any:
        """Builds the optimizer wrapper of a model (inside DDP or not)."""
        model = getattr(model, "module", model)
        single: list[dict] = []
        self.add_params(single, model)
        merged: dict[tuple, dict] = {}
        for group in single:
            options = {key: value for key, value in group.items() if key != "params"}
            trainable = [p for p in group["params"] if p.requires_grad]
            if trainable:
                key = tuple(sorted(options.items()))
                merged.setdefault(key, {"params": [], **options})["params"].extend(trainable)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": list(merged.values())})
        return OPTIM_WRAPPERS.build(dict(self.optim_wrapper_cfg), default_args={"optimizer": optimizer})


def keep_grouping(cfg: Any) -> None:
    """Notes the settings that decide the groups where XTuner doesn't drop them: at the top of the config."""
    kept = {key: cfg.optim_wrapper[key] for key in GROUPING if cfg.optim_wrapper.get(key)}
    if kept:
        cfg[KEPT_UNDER] = kept


def settle_grouping(optim_wrapper: dict, cfg: Any) -> None:
    """Completes the config of an optimizer wrapper by what was noted, and by our constructor where none is named."""
    for key, value in (cfg.get(KEPT_UNDER) or {}).items():
        optim_wrapper.setdefault(key, value)
    if optim_wrapper.get("paramwise_cfg"):
        optim_wrapper.setdefault("constructor", GroupedOptimWrapperConstructor.__name__)
