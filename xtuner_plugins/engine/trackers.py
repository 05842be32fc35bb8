"""Where a run's losses go besides its own log: TensorBoard, W&B, SwanLab or MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.registry import VISUALIZERS
from mmengine.visualization import LocalVisBackend, Visualizer

from ..datasets.images.media import load_image
from ..ranges import TRACKERS, check_tracker
from .panel import PanelRecord


@VISUALIZERS.register_module()
class TrackingVisualizer(Visualizer):
    """MMEngine's visualizer, with the backend that the setting ``tracker`` names.

    Args:
        name: As MMEngine's visualizer.
        tracker: A key of `TRACKERS`, or ``none``.
        vis_backends: Backends besides it, as MMEngine's configs name them.
        **options: As MMEngine's visualizer.

    Raises:
        RangeError: Another name, or the tracker's package isn't installed.
    """

    def __init__(
        self,
        name: str = "visualizer",
        *,
        tracker: str = "none",
        vis_backends: Sequence[Any] | None = None,
        **options: Any,
    ):
        super().__init__(name, vis_backends=[*(vis_backends or ()), *backends(tracker)], **options)

    @master_only
    def add_answers(self, records: Sequence[PanelRecord], answers: Sequence[str], step: int, with_images: bool) -> None:
        """Gives the answers of a panel to trackers that take texts (TensorBoard), and the images to all.

        Args:
            records: The panel.
            answers: One per record.
            step: Optimizer steps so far.
            with_images: Whether to give the images, which stay the same.
        """
        for backend in self._vis_backends.values():
            if isinstance(backend, LocalVisBackend):
                continue  # panel.jsonl and its images lie in the work directory already
            for index, (record, answer) in enumerate(zip(records, answers, strict=True)):
                if with_images:
                    backend.add_image(f"panel/{index}", np.asarray(load_image(record.image)), step=step)
                if hasattr(backend.experiment, "add_text"):
                    expected = "" if record.expected is None else f"\n\nexpected: {record.expected}"
                    text = f"**{record.question}**\n\n{answer}{expected}"
                    backend.experiment.add_text(f"panel/{index}", text, step)


def backends(tracker: str) -> list[dict[str, str]]:
    """The config of a tracker's backend, in a list; an empty one for ``none``.

    Raises:
        RangeError: As `TrackingVisualizer`.
    """
    check_tracker(tracker)
    return [] if tracker == "none" else [{"type": TRACKERS[tracker][0]}]
