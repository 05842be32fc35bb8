"""`stack.py` in a process of its own, with stand-ins for packages of both ages."""

from tests.conftest import ROOT
from xtuner_plugins.stack import START

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
import sys
for _ in range(2):
    exec(sys.argv[1])
assert len([name for name in sys.modules if name.startswith("xtuner_plugins")]) == 2, "more than the hook is imported"
import xtuner.utils, mmengine._strategy.deepspeed as strategy
names = strategy.OnebitAdam, strategy.OnebitLamb, strategy.ZeroOneAdam
print(xtuner.utils.is_safetensors_available(), getattr(strategy.OnebitAdam, "age", "new"), len(set(names)))
"""


def test_what_is_missing_is_there_and_what_is_there_stays(run_tool, tmp_path):
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
        done = run_tool("-c", PROBE, START, cwd=tmp_path / age, env={"PYTHONPATH": "."})
        assert done.stdout.strip() == said, done.stderr


def test_processes_start_where_the_project_has_gone(run_tool, tmp_path):
    """Python runs the line before anything else: whoever moves or uninstalls the project can't be kept from Python."""
    done = run_tool("-S", "-c", "import sys; exec(sys.argv[1])", START, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
