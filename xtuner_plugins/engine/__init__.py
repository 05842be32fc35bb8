"""What this project adds to MMEngine, XTuner and DeepSpeed: the runtime, the training loop, hooks, wrappers."""

from .ddp import DeviceAwareDDP
from .hooks.checkpoint_guard import CheckpointGuardHook
from .hooks.ledger import LedgerHook
from .hooks.plan import PlanHook
from .hooks.preprocessing_lock import PreprocessingLockHook
from .hooks.run_contract import RunContractHook
from .hooks.whole_checkpoint import WholeCheckpointHook
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
