import ast
import re

from tests.conftest import ROOT
from xtuner_plugins.datasets.audit.reason_words import REASONS, in_chinese, remedy_in_chinese
from xtuner_plugins.datasets.stores.store import DENIED, REFUSED

RAISED_BY = ("fail", "warn", "RecordError", "MediaError")
# Not of a record that is checked: of conversion, of commands, of data URLs that are converted, of a whole store.
ELSEWHERE = {"columns", "data_url", "kind", "not_listed", "shape"}


def reasons():
    """Reasons that the data side gives for a record."""
    found = set()
    for path in (ROOT / "xtuner_plugins/datasets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in RAISED_BY:
                words = [arg.value for arg in node.args[:3] if isinstance(arg, ast.Constant)][:1]
                found |= {word for word in words if re.fullmatch("[a-z_]+", word)}
    return found - ELSEWHERE


def test_every_reason_has_chinese_words():
    found = reasons()
    assert len(found) > 40 and (found | {DENIED, REFUSED}) - set(REASONS) == set()
    assert all(title and remedy for title, remedy in REASONS.values())


def test_others_stay_as_they_are():
    assert in_chinese("image_missing") == "图像不存在" and in_chinese("new_reason") == "new_reason"
    assert remedy_in_chinese("image_missing", "x") == "更正名字或图像目录" and remedy_in_chinese("new", "x") == "x"
