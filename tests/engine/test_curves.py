"""Series of a work directory: each step once over all starts."""

import json

from xtuner_plugins.engine.curves import CONTRACT_FILE, read_series


def start(work_dir, name, done, rows):
    folder = work_dir / name
    (folder / "vis_data").mkdir(parents=True)
    (folder / CONTRACT_FILE).write_text(json.dumps({"run": {"done": done}}))
    (folder / "vis_data/scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_resumed_start_replaces_what_came_after_its_checkpoint(tmp_path):
    start(tmp_path, "1", 0, [{"step": n, "loss": 1.0, "iter": n} for n in (10, 20, 30, 40)])
    start(tmp_path, "2", 20, [{"step": 35, "loss": 2.0}])
    assert read_series(tmp_path) == {"loss": [(10, 1.0), (20, 1.0), (35, 2.0)]}
    start(tmp_path, "3", 0, [{"step": 10, "loss": 3.0}])
    assert read_series(tmp_path) == {"loss": [(10, 3.0)]}


def test_rows_of_a_step_belong_together_and_a_cut_line_is_left_out(tmp_path):
    start(tmp_path, "1", 0, [{"step": 2, "loss": 1.0, "lr": 1e-3}, {"step": 2, "val_loss": 2.0, "name": "text"}])
    with (tmp_path / "1/vis_data/scalars.json").open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_series(tmp_path) == {"loss": [(2, 1.0)], "lr": [(2, 1e-3)], "val_loss": [(2, 2.0)]}
    assert read_series(tmp_path / "none") == {}
