from tests.configs.test_configs import LEAVES
from tests.conftest import ROOT


def rows(run_tool, *words):
    """name -> cells of the printed table."""
    done = run_tool("tools/list_configs.py", *words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    return {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("│").split("│")] for line in lines)}


def test_every_config_has_its_row(run_tool):
    found = rows(run_tool)
    assert set(found) == {leaf.stem for leaf in LEAVES}
    for leaf in LEAVES:
        family = "" if leaf.parent == ROOT / "configs" else str(leaf.parent.relative_to(ROOT / "configs"))
        assert found[leaf.stem][1] == family and all(found[leaf.stem][2:]), found[leaf.stem]
    assert "projector, LoRA on every linear layer of the LLM" in found["toy_finetune_lora"]


def test_a_family_and_a_stage(run_tool):
    toys = rows(run_tool, "--family", "toy")
    assert toys and set(toys) == {leaf.stem for leaf in LEAVES if leaf.parent.name == "toy"}
    both = rows(run_tool, "--family", "toy", "--stage", "lora")
    assert set(both) == {name for name in toys if "lora" in name.split("_")} != set(toys)
