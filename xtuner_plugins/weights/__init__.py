"""Tensors on disk and their names: what reads, names, merges and loads.

From below: lazy tensors (``lazy``), their files (``reading``, ``zero``, ``writer``, ``staging``), names as tables
(``mapping``; ``official``, ``hf``, ``languages``), any model directory in our names (``model_view``), what a run left
(``checkpoint``, ``work_dir``, ``record``), adapters laid into weights (``merge``), a model in memory (``loader``).
``allowed`` lists the fields of json files that pass.
"""
