"""Fills a model under ZeRO-3: each module is split over the ranks before the next is read.

::

    rank 0   read q_proj whole -> keep the first half     read k_proj whole -> keep the first half     ...
    rank 1   read q_proj whole -> keep the second half    read k_proj whole -> keep the second half    ...

So no rank ever holds more than its share and one module. DeepSpeed does the splitting (``deepspeed.zero.Init``);
``deepspeed.initialize`` later leaves partitioned parameters as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn


def partition_dtype(config: Mapping) -> torch.dtype:
    """The dtype in which a DeepSpeed configuration computes; parameters must have it before they are partitioned."""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16}
    found = (dtype for key, dtype in names.items() if (config.get(key) or {}).get("enabled") is True)
    return next(found, torch.float32)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this parameter (its own data is empty then)."""
    return hasattr(parameter, "ds_id")


def over_ranks(config: Mapping) -> Callable[[nn.Module, str], None]:
    """For ``loader.build(filled=...)``: splits the own parameters of each module over the ranks.

    Every rank of the process group must load the same model: splitting is a collective operation.

    Args:
        config: the DeepSpeed configuration, of stage 3.
    """
    from deepspeed import zero

    kept = ("zero_optimization", "bf16", "fp16")
    # The batch size doesn't matter here, but DeepSpeed refuses a configuration without one.
    config = {"train_micro_batch_size_per_gpu": 1, **{key: config[key] for key in kept if key in config}}

    def partition(model: nn.Module, name: str) -> None:
        parameters = list(model.get_submodule(name).parameters(recurse=False))
        if parameters:
            zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=config)

    return partition
