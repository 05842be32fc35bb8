"""The toy world: a tokenizer, models and images made on the spot; nothing is downloaded.

The quick start and the tests use it. What it writes is laid out exactly as the real thing: a Qwen2
directory, a standalone InternViT directory, LLaVA-format annotation files beside an image folder.
"""
