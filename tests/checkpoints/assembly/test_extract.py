"""Extraction: the parts of a directory assemble to the same directory again."""

import pytest
import torch
from safetensors.torch import load_file

from xtuner_plugins.checkpoints.assembly.base import build_base
from xtuner_plugins.checkpoints.assembly.extract import extract
from xtuner_plugins.checkpoints.io.reader import read_json


def test_extracted_parts_make_the_same_base(toy_base, tmp_path):
    for part in ("vision", "projector", "llm"):
        extract(toy_base, part, tmp_path / part)
    projector = tmp_path / "projector" / "model.safetensors"
    build_base(tmp_path / "vision", tmp_path / "llm", tmp_path / "again", dtype="float32", projector=projector)
    a, b = (load_file(d / "model.safetensors") for d in (toy_base, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="part 'x' is unknown"):
        extract(toy_base, "x", tmp_path / "x")


@pytest.mark.slow
def test_tool(run_tool, toy_base, tmp_path):
    done = run_tool("tools/extract.py", toy_base, "vision", tmp_path / "vision")
    assert done.returncode == 0 and "32 tensors" in done.stdout, done.stderr  # 4, and 14 per layer


def test_what_lies_beside_each_part(toy_base, tmp_path):
    for part in ("vision", "projector", "llm"):
        extract(toy_base, part, tmp_path / part)
    config = read_json(toy_base / "config.json")
    assert read_json(tmp_path / "vision" / "config.json") == config["vision_config"]
    assert read_json(tmp_path / "llm" / "config.json") == config["llm_config"]
    kept = ("downsample_ratio", "ps_version", "hidden_size")
    assert read_json(tmp_path / "projector" / "config.json") == {key: config[key] for key in kept}
    names = {path.name for path in (tmp_path / "llm").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not {path.name for path in (tmp_path / "vision").iterdir()} - {"config.json", "model.safetensors"}
