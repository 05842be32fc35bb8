"""From a config to its equalities: a tiny base, a few samples, the config made tiny."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from . import variants
from .equalities import Equalities
from .samples import take_samples
from .twin import write_twin

NUM_SAMPLES = 24  # of runs that are left and gone on with


def prepare(config: Config, folder: Path) -> tuple[Equalities, list[str]]:
    """Writes the tiny base and the samples into a folder.

    Returns:
        The equalities, and lines that say what was made of what.

    Raises:
        ConfigError: The config can't be tested.
        CheckpointError: The base is no model directory.
    """
    settings = variants.dumped(config, folder)
    variants.check_kind(settings)
    base, made_after = write_twin(
        settings["model"]["base"], folder / "twin", settings["model"].get("visual_encoder_last_layers") or 0
    )
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    dataset = settings["train_dataloader"]["dataset"]
    few = take_samples(dataset, base, folder / "few", variants.STEP)
    many = take_samples(dataset, base, folder / "many", NUM_SAMPLES)
    tiny = variants.shrink(settings, base, few, folder / "cache")
    lines = [f"model: tiny, after {made_after}", f"data: {many.description}"]
    return Equalities(tiny, few, many, base, folder), lines
