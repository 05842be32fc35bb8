"""Everything between an annotation file and a batch.

records/      a line of JSON -> a checked conversation: where lines lie, what they say, boxes
images/       a file -> uint8 tiles: opening images and videos, the grid, three routes
text/         a conversation -> ids and labels: templates, segments, tokens
plan/         what fits, how long every record is, which samples make a pack
audit/        every record looked at before training, the report, preparing known data

dataset       the mixture as one list of samples    mixture      the files and their settings
samplers      the order of an epoch                 collate      samples -> batch
fates         what becomes of each sample           ledger       what was trained, what was left out and why
bad_samples   policies and stand-ins                errors       every complaint, with place and remedy
base          what a model directory says           cache        files and locks between runs
handover      a batch crosses to the training process
"""

from .collate import collate, collate_packed
from .dataset import MultimodalDataset
from .errors import DataError, MediaError, RecordError, SettingError
from .images.tiling import DynamicTiling
from .samplers import PackBatchSampler, PlanSampler

__all__ = [
    "DataError",
    "DynamicTiling",
    "MediaError",
    "MultimodalDataset",
    "PackBatchSampler",
    "PlanSampler",
    "RecordError",
    "SettingError",
    "collate",
    "collate_packed",
]
