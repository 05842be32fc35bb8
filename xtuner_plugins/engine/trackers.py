"""Where a run's losses go besides its own log: TensorBoard, W&B, SwanLab or MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer

from ..ranges import TRACKERS, check_tracker


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


def backends(tracker: str) -> list[dict[str, str]]:
    """The config of a tracker's backend, in a list; an empty one for ``none``.

    Raises:
        RangeError: As `TrackingVisualizer`.
    """
    check_tracker(tracker)
    return [] if tracker == "none" else [{"type": TRACKERS[tracker][0]}]
