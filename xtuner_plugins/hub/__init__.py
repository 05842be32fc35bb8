"""The model's own code, which training runs and every export ships.

Each file but this one is copied into exports as it is: torch and transformers only, relative imports, and it
must run on every transformers release from 4.37 on.
"""

from .configuration_intern_vit import InternVisionConfig
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import Conversation, get_conv_template
from .modeling_intern_vit import InternVisionModel
from .modeling_internvl_chat import InternVLChatModel

__all__ = [
    "Conversation",
    "InternVLChatConfig",
    "InternVLChatModel",
    "InternVisionConfig",
    "InternVisionModel",
    "get_conv_template",
]
