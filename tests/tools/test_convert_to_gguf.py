"""The command that writes GGUF files, as a user gets it."""

import importlib.util
import shutil

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("gguf_tool", ROOT / "tools/convert_to_gguf.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_it_says_what_it_wrote_and_how_to_run_it(toy_base, tmp_path, capsys):
    assert tool.main([str(toy_base), str(tmp_path / "out"), "--type", "bf16", "--name", "mine"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    model, mmproj = tmp_path / "out/mine-bf16.gguf", tmp_path / "out/mmproj-mine-bf16.gguf"
    assert first.startswith(f"wrote {model} and {mmproj}: ") and model.is_file() and mmproj.is_file()
    assert last == f"llama-server -m {model} --mmproj {mmproj}"


def test_refusals_are_one_line(toy_base, tmp_path, capsys):
    shutil.copytree(toy_base, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text().replace('"ps_version": "v2"', '"ps_version": "v1"'))
    for model, message in ((tmp_path / "none", "does not exist"), (tmp_path / "base", "can't run ps_version v1")):
        assert tool.main([str(model), str(tmp_path / "out")]) == 1
        printed, errors = capsys.readouterr()
        assert printed == "" and errors.startswith("error: ") and message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()
