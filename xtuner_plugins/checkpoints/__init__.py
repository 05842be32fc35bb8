"""Everything between a run and a directory of weights.

============  =============================================================================================
``io``        weight files: tensors that stay on disk, readers, DeepSpeed directories, writer, staging
``formats``   one file per format of model directory: recognize, rename, configure, write
``lora``      adapters and trained token rows: merged into weights, or written for PEFT
``assembly``  a base out of a vision tower, a language model and a projector, and its parts taken out again
============  =============================================================================================

On top of them: what a run left (``work_dir``), what a checkpoint changes in its base (``checkpoint``, ``trained``), a
model loaded (``loader``, ``partition``) and a model written (``export``).
"""
