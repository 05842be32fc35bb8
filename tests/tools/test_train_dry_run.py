"""A dry run checks what a start checks, plans the run, and leaves nothing behind."""

from tests.conftest import ROOT
from tests.small_data import write_dataset


def test_a_dry_run_plans_what_a_start_would_do(run_tool, toy_base, tmp_path):
    data, images = write_dataset(tmp_path)
    values = [f"base={toy_base}", f"data_paths={data}", f"image_folders={images}"]
    words = [ROOT / "configs/toy/toy_finetune_lora.py", "--dry-run", "--set", *values]
    done = run_tool(ROOT / "tools/train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *plan = done.stdout.splitlines()
    assert first == "The config can start; nothing was trained. The plan of this run:"
    assert any("trained" in line for line in plan) and any("one process" in line for line in plan)
    assert not list(tmp_path.glob("work_dirs/**/*.py"))

    (tmp_path / "InternVL3-38B").symlink_to(toy_base)  # whose row has half the rate
    for changed, told in (("InternVL3-38B", "note: lr=5e-05 is the rate for InternVL3-38B"), ("InternVL3-8B", "")):
        done = run_tool(ROOT / "tools/train.py", "finetune_lora", *words[1:], f"base={changed}", cwd=tmp_path)
        assert done.stderr.startswith(told) and ("note: " in done.stderr) == bool(told), done.stderr
