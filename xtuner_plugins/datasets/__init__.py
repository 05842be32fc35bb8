"""Everything between an annotation file and a batch.

records       JSON -> checked conversation          index        where the records of a file lie
media, video  opening pictures                      tiling       a picture -> uint8 tiles
boxes         pixels -> the 0-1000 frame            routes       three ways from file to tiles
templates     conversation -> segments              tokens       text -> ids
conversation  segments -> ids and labels            budget       tiles and tokens that fit
mixture       the files and their settings          measure      one pass: lengths and sizes of every record
lengths       what was measured, kept on disk       complaints   what is wrong, checked again at each start
fates         what becomes of each sample           cache        files and locks between runs
dataset       the mixture as one list of samples    packing      samples -> packs
collate       samples -> batch                      samplers     the plan of an epoch
bad_samples   policies and stand-ins                ledger       what was trained, what was left out and why
check         every record opened before training   errors       every complaint, with place and remedy
"""

from .collate import collate, collate_packed
from .dataset import MultimodalDataset
from .errors import DataError, MediaError, RecordError, SettingError
from .samplers import PackBatchSampler, PlanSampler
from .tiling import DynamicTiling

__all__ = [
    "DataError",
    "DynamicTiling",
    "LedgerHook",
    "MediaError",
    "MultimodalDataset",
    "PackBatchSampler",
    "PlanSampler",
    "RecordError",
    "SettingError",
    "collate",
    "collate_packed",
]


def __getattr__(name: str):
    """`LedgerHook` stands with the other hooks, in the package above this one; configs may name it here too."""
    if name == "LedgerHook":
        from ..engine.hooks.ledger import LedgerHook

        return LedgerHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
