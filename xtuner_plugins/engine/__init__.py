"""What MMEngine, XTuner and DeepSpeed need from us to run: the runtime, the launcher, hooks, the DDP wrapper."""

from .ddp import DeviceAwareDDP
from .hooks import CheckpointGuardHook, RunContractHook
from .loops import PlanHook, PlannedTrainLoop
from .runtime import prepare_runtime

__all__ = [
    "CheckpointGuardHook",
    "DeviceAwareDDP",
    "PlanHook",
    "PlannedTrainLoop",
    "RunContractHook",
    "prepare_runtime",
]
