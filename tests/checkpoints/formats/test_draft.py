"""What an export holds besides the weights, and what it refuses."""

import shutil

from tests.checkpoints.training import make_model, save_pth, write_config
from xtuner_plugins.checkpoints.export import export


def test_code_that_is_not_whole_is_replaced_by_ours(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "base")
    (tmp_path / "base" / "conversation.py").unlink()
    config = write_config(tmp_path / "c.py", tmp_path / "base")
    done = export(config, save_pth(make_model(toy_base), tmp_path / "iter_1.pth"), tmp_path / "out")
    assert "lacks conversation.py" in done["notes"][0] and (tmp_path / "out" / "conversation.py").is_file()
