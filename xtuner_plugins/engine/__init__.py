"""What MMEngine, XTuner and DeepSpeed need from us to run: the runtime, the loop, hooks, wrappers."""

from .ddp import DeviceAwareDDP
from .hooks import (
    CheckpointGuardHook,
    LedgerHook,
    PlanHook,
    PreprocessingLockHook,
    RunContractHook,
    WholeCheckpointHook,
)
from .loops import PlannedTrainLoop
from .param_groups import GroupedOptimWrapperConstructor
from .runtime import prepare_runtime
from .schedulers import WarmupCosineLR

__all__ = [
    "CheckpointGuardHook",
    "DeviceAwareDDP",
    "GroupedOptimWrapperConstructor",
    "LedgerHook",
    "PlanHook",
    "PreprocessingLockHook",
    "PlannedTrainLoop",
    "RunContractHook",
    "WarmupCosineLR",
    "WholeCheckpointHook",
    "prepare_runtime",
]
