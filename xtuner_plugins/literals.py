"""Values with dicts that are given on the command line: ``{"crop": 1.5}``, ``[dict(windows_paths=True), None]``.

MMEngine's ``--cfg-options`` reads numbers, words, lists and tuples, but tears a dict apart at its commas or keeps it as
text. A value that holds a dict is therefore read here, as Python's literals are; no value runs as code.
"""

from __future__ import annotations

import ast
import re
from typing import Any

# The beginning of a dict in a text that isn't Python, such as one with a missing bracket.
_BEGINS = re.compile(r"[\[(\s]*(\{\s*[\"']|dict\()")
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
_WORDS = {"true": True, "false": False}  # as MMEngine reads them elsewhere, and JSON writes them


def holds_dict(text: str) -> bool:
    """Whether a value is a dict, or a list or tuple with one, perhaps with a mistake in it.

    Names in braces, such as ``{a,b}.jsonl`` and ``{{ fileDirname }}``, are none.
    """
    if "{" not in text and "dict(" not in text:
        return False
    try:
        return _holds_dict(ast.parse(text.strip(), mode="eval").body)
    except _UNREADABLE:
        return _BEGINS.match(text) is not None


def read_literal(text: str) -> Any:
    """The value of a Python literal in which ``dict(a=1)`` and ``true`` may stand, too.

    Several values with commas between them are a list, as MMEngine reads ``a,b``.

    Raises:
        ValueError: The text is none; says what is wrong with it.
    """
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval").body
        several = isinstance(tree, ast.Tuple) and bool(tree.elts) and tree.elts[0].col_offset == 0
        value = ast.literal_eval(_Literal().visit(tree))
    except SyntaxError as error:
        raise ValueError(error.msg) from None
    except _UNREADABLE as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    return list(value) if several else value


def _is_dict_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict"


def _holds_dict(node: ast.expr) -> bool:
    if isinstance(node, (ast.List, ast.Tuple)):
        return any(map(_holds_dict, node.elts))
    return isinstance(node, ast.Dict) or _is_dict_call(node)


class _Literal(ast.NodeTransformer):
    """Writes calls of dict as dicts; raises `ValueError` at what would have to be run."""

    def visit_Call(self, node: ast.Call) -> ast.Dict:
        if not _is_dict_call(node) or node.args or not all(keyword.arg for keyword in node.keywords):
            raise ValueError(f"{ast.unparse(node)} is no literal")
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [self.visit(keyword.value) for keyword in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        if node.id not in _WORDS:
            raise ValueError(f"{node.id} is no number and not in quotes")
        return ast.Constant(_WORDS[node.id])
