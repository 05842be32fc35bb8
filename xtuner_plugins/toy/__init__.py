"""The toy world: a tokenizer, models and images made on the spot; nothing is downloaded.

The quick start and the tests use it. It writes the layouts of the real releases: a Qwen2 directory, a standalone
InternViT directory, and LLaVA-format annotation files beside an image folder.
"""
