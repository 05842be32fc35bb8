"""One reader of a model directory: training and chat agree, whatever it leaves out and whatever its format."""

import json
import shutil

import pytest

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.base import read_base, tiling_of
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.session import ChatSession

TILING_KEYS = ("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch")


def without(base, folder, *keys, **changed):
    shutil.copytree(base, folder)
    fields = json.loads((folder / "config.json").read_text())
    fields = {key: value for key, value in fields.items() if key not in keys}
    (folder / "config.json").write_text(json.dumps(fields | changed))
    return folder


def test_a_base_without_its_facts_is_refused(data_base, tmp_path, write_data, qa):
    data = write_data([qa()])
    for number, (edit, words) in enumerate(
        [
            ({"force_image_size": -1}, "force_image_size"),
            ({"vision_config": {"model_type": "intern_vit_6b", "patch_size": 0}}, "vision_config: patch_size is 0"),
            ({"downsample_ratio": "x"}, "downsample_ratio"),
            ({"llm_config": {"model_type": "nothing"}}, "model_type 'nothing'"),
            ({"llm_config": None}, "llm_config"),
            ({"template": None}, "names no 'template'"),
        ]
    ):
        with pytest.raises(ValueError, match=words):
            MultimodalDataset(without(data_base, tmp_path / str(number), **edit), data)


def test_training_and_chat_agree_on_absent_keys(toy_base, tmp_path, write_data, make_image, qa):
    data, folder = write_data([qa("<image>\nQ?", "A.", image="a.png")]), make_image("a.png", 336, 224)
    usual = DynamicTiling(1, 12, 112, True)
    for keys, expected in [
        (["dynamic_image_size"], DynamicTiling(1, 1, 112, True)),
        (["use_thumbnail"], DynamicTiling(1, 12, 112, False)),
        (["max_dynamic_patch"], DynamicTiling(1, 6, 112, True)),
        (["min_dynamic_patch"], usual),
        (["force_image_size"], usual),
        (TILING_KEYS, DynamicTiling(1, 1, 112, False)),
    ]:
        base = without(toy_base, tmp_path / str(len(list(tmp_path.iterdir()))), *keys)
        dataset = MultimodalDataset(base, data, folder)
        session = ChatSession.from_pretrained(base, device="cpu")
        assert dataset.sources[0].tiling == session.tiling == expected
        assert dataset[0]["num_tiles"] == len(session.tiles([f"{folder}/a.png"])[0])


def test_an_hf_base_feeds_the_dataset_as_its_official_one_does(toy_base, tmp_path, write_data, make_image, qa):
    convert(toy_base, tmp_path / "hf", format="hf")
    data = (write_data([qa("<image>\nWhat?", "A cat.", image="a.png")]), make_image("a.png", 336, 224))
    one, other = MultimodalDataset(toy_base, *data), MultimodalDataset(tmp_path / "hf", *data)
    one_source, other_source = one.sources[0], other.sources[0]
    assert one_source.tiling == other_source.tiling and one_source.template == other_source.template
    assert one[0]["input_ids"].tolist() == other[0]["input_ids"].tolist()
    assert ChatSession.from_pretrained(tmp_path / "hf", device="cpu").tiling == other_source.tiling


def test_hf_keeps_one_tile(toy_base, tmp_path):
    base = without(toy_base, tmp_path / "base", dynamic_image_size=False)
    convert(base, tmp_path / "hf", format="hf")
    assert tiling_of(read_base(tmp_path / "hf"), {}).max_tiles == 1


def test_hf_refuses_what_it_cannot_say(toy_base, tmp_path):
    base = without(toy_base, tmp_path / "base", use_thumbnail=False)
    with pytest.raises(ValueError, match="can't express use_thumbnail=False"):
        convert(base, tmp_path / "hf", format="hf")
