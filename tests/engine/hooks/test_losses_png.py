"""The image of a run's losses: each step once over all starts."""

import json

from PIL import Image

from xtuner_plugins.engine.hooks import losses_png


def test_a_start_replaces_what_came_after_its_checkpoint_and_a_failure_to_draw_is_a_line(tmp_path, monkeypatch):
    one, cut = dict.fromkeys((1, 10, 20, 30), 1.0), '{"step": 30, "val_loss": 1.0}\n{"step": 40, "lo'
    for name, losses, rest in (("1", one, cut), ("2", {21: 2.0, 35: 2.5}, "")):
        (path := tmp_path / name / "vis_data/scalars.json").parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"step": step, "loss": losses[step]}) + "\n" for step in losses) + rest)
    assert losses_png.read_losses(tmp_path) == {1: 1.0, 10: 1.0, 20: 1.0, 21: 2.0, 35: 2.5}
    losses_png.draw_losses({"one": tmp_path, "two": tmp_path}, tmp_path / "losses.png")
    assert Image.open(tmp_path / "losses.png").size == (2 * 600, 408)  # 5 x 3.4 inches per run at 120 dpi
    said = []
    monkeypatch.setattr(losses_png, "print_log", lambda text, *rest: said.append(text))
    path.write_text("{}}\n")
    losses_png.draw_at_end(tmp_path)
    assert said[0].startswith("losses.png not drawn: JSONDecodeError")
