"""The image of a run's losses: each step once over all starts."""

import json
from types import SimpleNamespace

from PIL import Image

from xtuner_plugins.engine.hooks import losses_png
from xtuner_plugins.engine.hooks.losses_png import LossesImageHook, draw_losses, read_losses


def start(work_dir, name, losses, rest=""):
    path = work_dir / name / "vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses.items()) + rest)


def test_a_start_replaces_what_came_after_its_checkpoint(tmp_path):
    start(tmp_path, "1", dict.fromkeys((1, 10, 20, 30), 1.0), '{"step": 30, "val_loss": 1.0}\n{"step": 40, "lo')
    start(tmp_path, "2", {21: 2.0, 35: 2.5})
    assert read_losses(tmp_path) == {1: 1.0, 10: 1.0, 20: 1.0, 21: 2.0, 35: 2.5}
    draw_losses({"one": tmp_path, "two": tmp_path}, tmp_path / "losses.png")
    assert Image.open(tmp_path / "losses.png").size == (2 * 600, 408)  # 5 x 3.4 inches per run at 120 dpi
    start(tmp_path, "3", {1: 3.0})
    assert read_losses(tmp_path) == {1: 3.0}


def test_a_failure_to_draw_is_a_line(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(losses_png, "print_log", lambda text, *rest: said.append(text))
    start(tmp_path, "1", {1: 1.0})
    LossesImageHook().after_train(SimpleNamespace(work_dir=str(tmp_path)))
    assert Image.open(tmp_path / "losses.png").width == 600
    (tmp_path / "1/vis_data/scalars.json").write_text("{}}\n")
    LossesImageHook().after_train(SimpleNamespace(work_dir=str(tmp_path)))
    (line,) = said
    assert line.startswith("losses.png not drawn: JSONDecodeError")
