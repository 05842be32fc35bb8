"""Tensors on disk and their names: what reads, names, merges and loads.

From below: lazy tensors (``lazy``), their files (``reading``, ``zero``, ``writer``, ``staging``), names as tables
(``mapping``; ``official``, ``hf``, ``internlm2``, ``qwen1``), any model directory in our names (``model_view``), what a
run left (``checkpoint``, ``work_dir``, ``record``), adapters and token rows laid into weights (``merge``,
``token_rows``), a model in memory (``loader``, ``partition``). ``allowed`` lists the fields of json files that pass.
"""
