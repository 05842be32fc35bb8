"""Dynamic high-resolution multimodal LLMs for XTuner 0.2 / MMEngine, from data to official weights."""

__version__ = "0.1.0"
