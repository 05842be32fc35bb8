"""Parameter names read from source are those that `inspect` gives, for every type of our configs."""

import inspect

from xtuner_plugins.engine.check.signatures import parameters
from xtuner_plugins.settings import read_config, typed_nodes

OTHERS = {("torch.utils.data", "DataLoader"), ("mmengine.runner.utils", "set_random_seed")}


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
    names = ("finetune_lora", "finetune_packed", "finetune_dpo_qlora")  # which have all of them
    types = [node["type"] for name in names for _, node in typed_nodes(read_config(name)._to_lazy_dict())]
    wrong = {}
    for module, name in OTHERS | {(each._module, each._imported) for each in types if not isinstance(each, str)}:
        found = parameters(module, name)
        expected = keywords(getattr(__import__(module, fromlist=[name]), name))
        if found is None or (set(found.hints), found.takes_any) != expected:
            wrong[name] = found
    assert wrong == {}
    for unknown in (("no_such_package", "Thing"), ("math", "sqrt"), ("torch.utils.data", "Nothing")):
        assert parameters(*unknown) is None
