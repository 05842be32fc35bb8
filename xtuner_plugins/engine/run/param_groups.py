"""The optimizer: AdamW of PyTorch, and groups of parameters by ``optim_wrapper.paramwise_cfg`` under every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ...families import PARTS

# Keys of `optim_wrapper` that decide the groups; XTuner drops them under --deepspeed.
GROUPING = ("paramwise_cfg", "constructor")
KEPT_UNDER = "optim_wrapper_grouping"
RULES = {"part_lr", "loraplus_lr_ratio", "decay_norms_and_biases"}
B_MATRICES = (".lora_B.", ".lora_embedding_B.")  # in names of adapters


def build_adamw(
    params: Iterable,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW`, fused where there is a GPU; a checkpoint goes on with or without one."""
    fused = torch.cuda.is_available() or None  # None: PyTorch chooses
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Learning rates and weight decays by part, in one group per set of options.

    MMEngine's own constructor makes one group per parameter, and ZeRO one flat buffer per group.

    ``paramwise_cfg`` takes:
        part_lr: learning rates by ``visual_encoder``, ``projector``, ``llm`` and ``lora`` (the adapters of every part);
            a part without one, or with None, takes the optimizer's ``lr``.
        loraplus_lr_ratio: LoRA+ (arXiv 2402.12354): the B matrices of adapters learn this many times as fast as the A
            matrices; 1 for plain LoRA.
        decay_norms_and_biases: False takes weight decay off every parameter of fewer than two dimensions.

    Raises:
        ValueError: an unknown rule or part, or a learning rate or a factor for what doesn't train.
    """

    def __call__(self, model: nn.Module) -> Any:
        """Builds the optimizer wrapper of a model (inside DDP or not)."""
        merged: dict[tuple, dict] = {}
        for parameter, options in self.options_of(getattr(model, "module", model)):
            merged.setdefault(tuple(sorted(options.items())), {"params": [], **options})["params"].append(parameter)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": list(merged.values())})
        return OPTIM_WRAPPERS.build(dict(self.optim_wrapper_cfg), default_args={"optimizer": optimizer})

    def options_of(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, dict[str, float]]]:
        """Each trainable parameter with the ``lr`` and ``weight_decay`` in which it differs from the optimizer's."""
        rules = self.paramwise_cfg
        if unknown := rules.keys() - RULES:
            known = f"known are {', '.join(sorted(RULES))}; DefaultOptimWrapperConstructor has others"
            raise ValueError(f"paramwise_cfg: no rule is called {', '.join(sorted(unknown))}; {known}")
        parts = model.parts() if hasattr(model, "parts") else {"model": model}
        part_of = {id(p): part for part, module in parts.items() for p in module.parameters()}
        part_lr = {part: rate for part, rate in (rules.get("part_lr") or {}).items() if rate is not None}
        b_ratio = rules.get("loraplus_lr_ratio", 1.0)
        decays_all, seen = rules.get("decay_norms_and_biases", True), set()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = "lora" if "lora_" in name else part_of[id(parameter)]
            seen.add(kind)
            lr = part_lr.get(kind, self.base_lr)
            if any(matrix in name for matrix in B_MATRICES):
                lr *= b_ratio
            # ZeRO-3 leaves a flat share in place of the tensor.
            num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
            decay = self.base_wd if decays_all or num_dims >= 2 else 0.0
            options = {"lr": (lr, self.base_lr), "weight_decay": (decay, self.base_wd)}
            yield parameter, {key: value for key, (value, usual) in options.items() if value != usual}
        if b_ratio != 1 and "lora" not in seen:
            raise ValueError(f"loraplus_lr_ratio={b_ratio} is set, but there are no adapters; leave it 1")
        for kind in part_lr:
            if kind not in seen:
                known = f"leave it None (parts are {', '.join(PARTS)}, lora)"
                raise ValueError(f"a learning rate is set for {kind}, but nothing of it trains; {known}")


def num_weights(parameter: nn.Parameter) -> int:
    """Number of weights of a parameter: of the whole one under ZeRO-3, of the unpacked one in a 4-bit layer."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return getattr(parameter, "ds_numel", parameter.numel())


def group_members(optimizer: Any) -> list[list[nn.Parameter]]:
    """The model's trainable parameters of each group of a live optimizer; ZeRO's itself holds flat vectors."""
    if hasattr(optimizer, "sub_group_to_group_id"):  # ZeRO-3: a group is cut into sub-groups
        groups: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
        for index, parameters in enumerate(optimizer.fp16_groups):
            groups[optimizer.sub_group_to_group_id[index]].extend(parameters)
        return groups
    flattened: Iterable | None = getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "bf16_groups", None)
    if flattened is not None:
        return [list(parameters) for parameters in flattened]
    # MMEngine gives every parameter to the optimizer; frozen ones get no state and no update.
    return [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]


def keep_grouping(cfg: Any) -> None:
    """Notes the settings that decide the groups where XTuner doesn't drop them: at the top of the config."""
    kept = {key: cfg.optim_wrapper[key] for key in GROUPING if cfg.optim_wrapper.get(key)}
    if isinstance(kept.get("constructor"), type):  # MMEngine prints and dumps a class only under the key `type`
        kept["constructor"] = f"{kept['constructor'].__module__}.{kept['constructor'].__qualname__}"
    if kept:
        cfg[KEPT_UNDER] = kept


def settle_grouping(optim_wrapper: dict, cfg: Any) -> None:
    """Completes the config of an optimizer wrapper by what was noted, and by our constructor where none is named."""
    for key, value in (cfg.get(KEPT_UNDER) or {}).items():
        optim_wrapper.setdefault(key, value)
    if optim_wrapper.get("paramwise_cfg"):
        optim_wrapper.setdefault("constructor", GroupedOptimWrapperConstructor.__name__)
