"""What MMEngine, XTuner and DeepSpeed need from us to run: the runtime, the launcher, the loop, hooks, wrappers."""

from .ddp import DeviceAwareDDP
from .hooks import CheckpointGuardHook, RunContractHook
from .loops import PlanHook, PlannedTrainLoop
from .param_groups import GroupedOptimWrapperConstructor
from .preprocessing_lock import PreprocessingLockHook
from .runtime import prepare_runtime
from .saving import WholeCheckpointHook
from .schedulers import WarmupCosineLR

__all__ = [
    "CheckpointGuardHook",
    "DeviceAwareDDP",
    "GroupedOptimWrapperConstructor",
    "PlanHook",
    "PreprocessingLockHook",
    "PlannedTrainLoop",
    "RunContractHook",
    "WarmupCosineLR",
    "WholeCheckpointHook",
    "prepare_runtime",
]
