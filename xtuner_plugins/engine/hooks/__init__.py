"""The hooks of a run, one file each."""

from .checkpoint_guard import CheckpointGuardHook
from .ledger import LedgerHook
from .plan import PlanHook
from .preprocessing_lock import PreprocessingLockHook
from .run_contract import RunContractHook
from .whole_checkpoint import WholeCheckpointHook

__all__ = [
    "CheckpointGuardHook",
    "LedgerHook",
    "PlanHook",
    "PreprocessingLockHook",
    "RunContractHook",
    "WholeCheckpointHook",
]
