"""What this project adds to MMEngine, XTuner and DeepSpeed: the runtime, the training loop, hooks, wrappers."""

from importlib import import_module
from typing import Any

# Imported when first used: each of them needs MMEngine's runner, and with it DeepSpeed and transformers.
_HOMES = {
    "GroupedOptimWrapperConstructor": "run.param_groups",
    "ImageGainHook": "hooks.image_gain",
    "LedgerHook": "hooks.ledger",
    "PrecomputedReferenceHook": "hooks.precomputed_reference",
    "PlannedTrainLoop": "run.loops",
    "RunContractHook": "hooks.run_contract",
    "StateHook": "hooks.state",
    "StepLineHook": "hooks.step_line",
    "ValidationHook": "hooks.validation",
    "WarmupCosineLR": "run.schedulers",
    "WholeCheckpointHook": "hooks.whole_checkpoint",
    "build_adamw": "run.param_groups",
    "prepare_runtime": "launch.entry",
}
__all__ = [*_HOMES, "register_all"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def register_all() -> None:
    """Imports every class of this project that a config may name by string: registries fill on import."""
    for name in ("xtuner_plugins.datasets", "xtuner_plugins.models"):
        import_module(name)
    for home in set(_HOMES.values()):
        import_module(f"{__name__}.{home}")
