"""The export's own code answers as this project does."""

import json
from pathlib import Path

from PIL import Image

from tests.weights.training import make_model, save_pth
from xtuner_plugins.export.export import export
from xtuner_plugins.toy import evaluate
from xtuner_plugins.toy.data import messages, write_data
from xtuner_plugins.toy.quickstart import CLEAN_PROCESS


def test_an_export_answers_as_the_trained_model(toy_base, run_tool, tmp_path):
    write_data(tmp_path, {"test": 2}, workers=1)
    with open(tmp_path / "test.jsonl", "a") as file:  # images of other shapes are cut by the published recipe, too
        for size in ((300, 100), (90, 90), (400, 900), (440, 330), (113, 500)):
            Image.effect_noise(size, 90).save(tmp_path / f"images/{size[0]}.png")
            turns = messages([("What number is on the sign?", "47")])
            record = {"id": str(size), "image": f"{size[0]}.png", "kind": "number", "conversations": turns}
            file.write(json.dumps(record) + "\n")
    (tmp_path / "run").mkdir()
    export(None, save_pth(make_model(toy_base), tmp_path / "run/iter_1.pth"), tmp_path / "out", dtype="float32")
    run, out, *asked, answers, expected = (
        str(tmp_path / name) for name in ("run", "out", "test.jsonl", "images", "answers.json", "expected.json")
    )
    done = run_tool("-I", CLEAN_PROCESS, out, *asked, answers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "transformers_modules" in done.stdout and "in 2 ways" in done.stdout  # the model's class is the export's
    evaluate.main([run, *asked, "--out", expected])
    given, wanted = (json.loads(Path(path).read_text()) for path in (answers, expected))
    assert given == wanted and list(wanted) == ["tiling", "one tile"] and wanted["tiling"] != wanted["one tile"]
