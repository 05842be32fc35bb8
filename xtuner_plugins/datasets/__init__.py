"""Everything between an annotation file and a batch.

records/      a line of JSON -> a checked conversation: offsets of records, their contents, boxes
images/       a file -> uint8 tiles: opening images and videos, the grid, exact or fast
text/         a conversation -> ids and labels: templates, segments, tokens
plan/         what fits, how long every record is, which samples make a pack
stores        objects of stores and members of zip archives

dataset       the mixture as one list of samples    mixture      the files and their settings
preference    pairs of answers as samples, and as batches
samplers      order of an epoch                     collate      samples -> batch
left_out      policies, rejects, fillers            ledger       what was trained, what was left out and why
base          what a model directory says           lock         the preprocessing that checkpoints keep
"""

from ..errors import DataError, MediaError, RecordError, SettingError
from .collate import collate, collate_packed
from .dataset import MultimodalDataset
from .images.tiling import DynamicTiling
from .preference import PreferenceDataset, collate_pairs
from .samplers import PackBatchSampler, PlanSampler

__all__ = [
    "DataError",
    "DynamicTiling",
    "MediaError",
    "MultimodalDataset",
    "PackBatchSampler",
    "PlanSampler",
    "PreferenceDataset",
    "RecordError",
    "SettingError",
    "collate",
    "collate_packed",
    "collate_pairs",
]
