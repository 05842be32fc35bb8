"""The mutants of `benchmarks/mutants.py`: one line each, in what runs."""

import ast

from benchmarks.mutants import mutants

SOURCE = '''
"""A docstring with 1 < 2 and not 3."""
def first(items: list[1], limit: int = 10) -> "int - 1":
    """As 1 + 1."""
    "é" if not (limit >= 1 and items) else print(limit)
    print("é", len(items) - 1)
    zip(items, items, strict=True)
    if limit is not None or "x" in items:
        raise ValueError(f"{limit + 1} is above {9}")
    assert limit < 5
    return (
        items[0] // 2
    ) if True else None
def second(x):
    return x
'''
MUTATED = """
def first(items: list[1], limit: int = 11) -> "int - 1":
    "é" if  (limit >= 1 and items) else print(limit)
    "é" if not (limit > 1 and items) else print(limit)
    "é" if not (limit >= 1 or items) else print(limit)
    "é" if not (limit >= 2 and items) else print(limit)
    pass
    print("é", len(items) + 1)
    print("é", len(items) - 2)
    pass
    if limit is None or "x" in items:
    if limit is not None and "x" in items:
    if limit is not None or "x" not in items:
        items[0] * 2
        items[0] // 3
        items[1] // 2
    ) if False else None
    return None
"""


def test_each_mutant_changes_one_line_that_runs():
    before, found = SOURCE.splitlines(), []
    for mutant in mutants(SOURCE, "a.py"):
        text = mutant.apply(SOURCE)
        ast.parse(text)
        found += [new for old, new in zip(before, text.splitlines(), strict=True) if old != new]
    assert sorted(found) == sorted(MUTATED.splitlines()[1:])
