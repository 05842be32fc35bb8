"""The export's own code answers as this project does."""

import json

from PIL import Image

from tests.weights.training import make_model, save_pth, write_config
from xtuner_plugins.export.export import export
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.toy.data import messages, write_data
from xtuner_plugins.toy.evaluate import answer, read_questions
from xtuner_plugins.toy.quickstart import CLEAN_PROCESS


def test_an_export_answers_as_the_trained_model(toy_base, run_tool, tmp_path):
    write_data(tmp_path, {"test": 2}, workers=1)
    with open(tmp_path / "test.jsonl", "a") as file:  # images of other shapes are cut by the published recipe, too
        for size in ((300, 100), (90, 90), (400, 900), (440, 330), (113, 500)):
            Image.effect_noise(size, 90).save(tmp_path / f"images/{size[0]}.png")
            turns = messages([("What number is on the sign?", "47")])
            record = {"id": str(size), "image": f"{size[0]}.png", "kind": "number", "conversations": turns}
            file.write(json.dumps(record) + "\n")
    config = write_config(tmp_path / "c.py", toy_base)
    checkpoint = save_pth(make_model(toy_base), tmp_path / "iter_1.pth")
    export(config, checkpoint, tmp_path / "out", dtype="float32")
    paths = [tmp_path / name for name in ("out", "test.jsonl", "images", "answers.json")]
    done = run_tool("-I", CLEAN_PROCESS, *paths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "transformers_modules" in done.stdout and "in 2 ways" in done.stdout  # the model's class is the export's
    session = open_session(config, checkpoint, device="cpu", dtype="float32")
    expected = answer(session, read_questions(tmp_path / "test.jsonl"), tmp_path / "images")
    assert json.loads((tmp_path / "answers.json").read_text()) == expected
    assert expected["tiling"] != expected["one tile"]
