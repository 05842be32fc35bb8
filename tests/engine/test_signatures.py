"""Parameter names read from source are those that `inspect` gives, for every type of our configs."""

import pytest

from xtuner_plugins.engine.config_check import _keywords
from xtuner_plugins.engine.signatures import parameters
from xtuner_plugins.engine.text_check import typed_nodes
from xtuner_plugins.settings import read_config


def types():
    """(module, name) of every type that a config names."""
    found = set()
    for name in ("finetune_lora", "finetune_packed", "finetune_dpo_qlora"):  # which have all of them
        for _, node in typed_nodes(read_config(name)._to_lazy_dict()):
            if not isinstance(node["type"], str):
                found.add((node["type"]._module, node["type"]._imported))
    return sorted(found)


TYPES = types()


@pytest.mark.parametrize("module, name", TYPES, ids=[name for _, name in TYPES])
def test_source_and_signature_say_the_same(module, name):
    found = parameters(module, name)
    assert found is not None
    names, takes_any = _keywords(getattr(__import__(module, fromlist=[name]), name))
    assert found == (names - {"self"}, takes_any)


def test_what_the_source_does_not_tell_is_none():
    assert parameters("no_such_package", "Thing") is None
    assert parameters("torch.optim", "NoSuchOptimizer") is None
    assert parameters("math", "sqrt") is None


def test_names_are_followed_through_imports_tables_and_bases(tmp_path, monkeypatch):
    package = tmp_path / "made_up"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text('_HOMES = {"Thing": "deep.thing"}\nfrom .deep import Other as Renamed\n')
    (package / "deep" / "__init__.py").write_text("if True:\n    from .thing import Other\n")
    (package / "deep" / "thing.py").write_text(
        "from dataclasses import dataclass\nfrom elsewhere import Far\n"
        "class Base:\n    def __init__(self, a, *, b=1): ...\n"
        "class Thing(Base):\n    def __init__(self, c, **kwargs): ...\n"
        "@dataclass\nclass Other:\n    d: int\n    e: int = 1\n"
        "class Plain(Base): ...\nclass Unknown(Far): ...\n"
        "def function(f, **kwargs): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert parameters("made_up", "Thing") == ({"a", "b", "c"}, False)
    assert parameters("made_up", "Renamed") == ({"d", "e"}, False)
    assert parameters("made_up.deep.thing", "Plain") == ({"a", "b"}, False)
    assert parameters("made_up.deep.thing", "Unknown") is None
    assert parameters("made_up.deep.thing", "function") == ({"f"}, True)
