"""Parameter names read from source are those that `inspect` gives, for every type of our configs."""

import inspect

from xtuner_plugins.engine.check.signatures import parameters
from xtuner_plugins.settings import read_config, typed_nodes


def types():
    """(module, name) of every type that a config names."""
    found = set()
    for name in ("finetune_lora", "finetune_packed", "finetune_dpo_qlora"):  # which have all of them
        for _, node in typed_nodes(read_config(name)._to_lazy_dict()):
            if not isinstance(node["type"], str):
                found.add((node["type"]._module, node["type"]._imported))
    return sorted(found)


def keywords(target):
    """Parameter names that ``target`` takes, those of its bases included where it passes ``**kwargs`` on."""
    functions, known = [target], set()
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]
    for function in functions:
        given = inspect.signature(function).parameters.values()
        known |= {p.name for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in given):
            return known - {"self"}, False
    return known - {"self"}, bool(functions)


def test_source_and_signature_say_the_same():
    wrong = {}
    for module, name in [*types(), ("torch.utils.data", "DataLoader"), ("mmengine.runner.utils", "set_random_seed")]:
        found = parameters(module, name)
        expected = keywords(getattr(__import__(module, fromlist=[name]), name))
        if found is None or (set(found.hints), found.takes_any) != expected:
            wrong[name] = found
    assert wrong == {}


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
    assert parameters("made_up", "Thing") == ({"a": None, "b": None, "c": None}, False)
    assert parameters("made_up", "Renamed") == ({"d": "int", "e": "int"}, False)
    assert parameters("made_up.deep.thing", "Plain") == ({"a": None, "b": None}, False)
    for unknown in (("made_up.deep.thing", "Unknown"), ("no_such_package", "Thing"), ("math", "sqrt")):
        assert parameters(*unknown) is None
    assert parameters("made_up.deep.thing", "function") == ({"f": None}, True)
