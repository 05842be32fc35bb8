"""Everything between a batch and a loss.

Read `vlm.py` first: the registered model. The network itself is `xtuner_plugins.hub`, the code that exports ship.
"""

from .flash import FlashConsistencyModel, FlashPreprocessor, FlashRouterModel
from .preference import PreferenceModel
from .preprocessor import TilePreprocessor
from .vlm import VisionLanguageModel

__all__ = [
    "FlashConsistencyModel",
    "FlashPreprocessor",
    "FlashRouterModel",
    "PreferenceModel",
    "TilePreprocessor",
    "VisionLanguageModel",
]
