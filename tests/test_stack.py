"""`stack.py` in a process of its own, with stand-ins for packages of both ages."""

import subprocess
import sys

from tests.conftest import ROOT

FILES = {
    "transformers/utils/__init__.py": "{question}",
    "xtuner/__init__.py": "",
    "xtuner/utils/__init__.py": "from transformers.utils import is_safetensors_available",
    "deepspeed/runtime/fp16/{onebit}.py": """
class OnebitAdam: age = 'old'
class OnebitLamb: pass
class ZeroOneAdam: pass
""",
    "mmengine/_strategy/deepspeed.py": "from deepspeed.runtime.fp16.onebit import OnebitAdam, OnebitLamb, ZeroOneAdam",
}
PROBE = """
import importlib.metadata, sys
for _ in range(2):
    importlib.metadata.EntryPoint("xtuner_plugins", sys.argv[1], "torch.backends").load()()
assert len([name for name in sys.modules if name.startswith("xtuner_plugins")]) == 2, "more than the hook is imported"
import xtuner.utils, mmengine._strategy.deepspeed as strategy
names = strategy.OnebitAdam, strategy.OnebitLamb, strategy.ZeroOneAdam
print(xtuner.utils.is_safetensors_available(), getattr(strategy.OnebitAdam, "age", "new"), len(set(names)))
"""


def test_what_is_missing_is_there_and_what_is_there_stays(tmp_path):
    after = (ROOT / "pyproject.toml").read_text().partition('entry-points."torch.backends"]')[2]
    hook = after.partition('xtuner_plugins = "')[2].partition('"')[0]
    for age, question, onebit, said in (
        ("old", "is_safetensors_available = lambda: 'asked'", "onebit", "asked old 3"),
        ("new", "", "other", "True new 3"),
    ):
        for name, text in FILES.items():
            path = tmp_path / age / name.format(onebit=onebit)
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in list(path.relative_to(tmp_path / age).parents)[:-1]:
                (tmp_path / age / folder / "__init__.py").touch()
            path.write_text(text.format(question=question))
        (tmp_path / age / "xtuner_plugins").symlink_to(ROOT / "xtuner_plugins")
        probe = [sys.executable, "-c", PROBE, hook]
        done = subprocess.run(probe, cwd=tmp_path / age, env={"PYTHONPATH": "."}, capture_output=True, text=True)
        assert done.stdout.strip() == said, done.stderr
