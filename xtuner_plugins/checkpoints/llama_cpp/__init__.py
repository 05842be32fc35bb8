"""GGUF files, which llama.cpp and the programs around it read.

``convert.py`` writes two of them from a model directory: the language model with its vocabulary, and the "mmproj" with
vision encoder and projector. Names of tensors and fields come from the ``gguf`` library.
"""
