"""What is said of a model without opening it is what a session does."""

import shutil

import pytest

from tests.weights.training import make_model, save_pth, write_config
from xtuner_plugins.export.export import convert, export
from xtuner_plugins.inference.batch_answers import lengths_of
from xtuner_plugins.inference.description import describe
from xtuner_plugins.inference.opening import find_source, open_session


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_config(folder / "mine.py", toy_base), save_pth(make_model(toy_base), folder / "iter_2.pth")


def test_tiles_are_those_of_a_session(toy_base, run, tmp_path):
    convert(toy_base, tmp_path / "hf", format="hf")
    for model, max_tiles in (((toy_base,), None), ((toy_base,), 2), ((tmp_path / "hf",), 2), (run, None), (run, 2)):
        session = open_session(*model, device="cpu", max_tiles=max_tiles)
        found = describe(find_source(*model), max_tiles=max_tiles)
        assert found.lengths == lengths_of(session)
        assert found.preprocessing["template"] == session.model.template
        assert found.preprocessing["max_tiles"] == session.tiling.max_tiles


def test_the_hash_is_of_the_content(toy_base, run, tmp_path):
    def of(*model):
        return describe(find_source(*model)).weights_hash()

    shutil.copytree(toy_base, tmp_path / "copy")
    assert of(tmp_path / "copy") == of(toy_base)
    export(*run, tmp_path / "copy", force=True)
    exported = of(tmp_path / "copy")
    trained = of(*run)
    assert len({of(toy_base), exported, trained}) == 3
    save_pth(make_model(toy_base, seed=1), run[1])
    assert of(*run) != trained
    (tmp_path / "copy" / "export_manifest.json").write_text("{}")  # says where it came from
    for name in ("tokenizer_config.json", "config.json", "model.safetensors"):
        path = tmp_path / "copy" / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + (b"\1" if kept.endswith(b"\0") else b"\0") if "safe" in name else kept + b" ")
        assert of(tmp_path / "copy") != exported
        path.write_bytes(kept)
        assert of(tmp_path / "copy") == exported
