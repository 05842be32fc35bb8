"""Everything between an annotation file and a batch.

    records       JSON -> checked conversation          index      where the records of a file lie
    media         opening pictures                      tiling     a picture -> uint8 tiles
    templates     conversation -> segments              tokens     text -> ids
    conversation  segments -> ids and labels            dataset    the mixture as one list of samples
    collate       samples -> batch                      errors     every complaint, with place and remedy
"""

from .collate import collate
from .dataset import MultimodalDataset
from .errors import DataError, MediaError, RecordError, SettingError
from .tiling import DynamicTiling

__all__ = ["DataError", "DynamicTiling", "MediaError", "MultimodalDataset", "RecordError", "SettingError", "collate"]
