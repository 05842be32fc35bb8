"""The metrics, by name."""

from __future__ import annotations

import difflib

from ...datasets.errors import SettingError
from ..metric import Metric
from .anls import Anls
from .error_rates import Cer
from .exact_match import ExactMatch
from .iou import Iou
from .multiple_choice import MultipleChoice
from .relaxed_accuracy import RelaxedAccuracy
from .vqa_accuracy import VqaAccuracy
from .yes_no import YesNo

_ALL = (
    ExactMatch,
    VqaAccuracy,
    Anls,
    RelaxedAccuracy,
    MultipleChoice,
    YesNo,
    Iou,
    Cer,
)
METRICS: dict[str, Metric] = {metric.name: metric() for metric in _ALL}


def find_metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        SettingError: There is none; the message names the nearest.
    """
    if name in METRICS:
        return METRICS[name]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), METRICS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise SettingError("metric", f"metric {name!r} is unknown", f"{hint}the metrics are {', '.join(METRICS)}")
