"""The model's own code, which training runs and every export ships.

Each file but this one is copied into exports as it is: torch and transformers only, relative imports, and it
must run on every transformers release from 4.37 on.
"""

from importlib import import_module

# Imported when first used: constants and templates are needed where transformers isn't.
_HOMES = {
    "Conversation": "conversation",
    "InternVLChatConfig": "configuration_internvl_chat",
    "InternVLChatModel": "modeling_internvl_chat",
    "InternVisionConfig": "configuration_intern_vit",
    "InternVisionModel": "modeling_intern_vit",
    "get_conv_template": "conversation",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
