"""One reader of a model directory: training and chat agree, whatever it leaves out and whatever its format."""

import json
import shutil

import pytest

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.session import ChatSession

TILING_KEYS = ("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch")
REFUSED = [
    ({"force_image_size": -1}, "force_image_size"),
    ({"vision_config": {"model_type": "intern_vit_6b", "patch_size": 0}}, "vision_config: patch_size is 0"),
    ({"downsample_ratio": "x"}, "downsample_ratio"),
    ({"llm_config": {"model_type": "nothing"}}, "model_type 'nothing'"),
    ({"llm_config": None}, "llm_config"),
    ({"template": None}, "names no 'template'"),
]
USUAL = DynamicTiling(1, 12, 112, True)
ABSENT = [
    (["dynamic_image_size"], DynamicTiling(1, 1, 112, True)),
    (["use_thumbnail"], DynamicTiling(1, 12, 112, False)),
    (["max_dynamic_patch"], DynamicTiling(1, 6, 112, True)),
    (["min_dynamic_patch"], USUAL),
    (["force_image_size"], USUAL),
    (TILING_KEYS, DynamicTiling(1, 1, 112, False)),
]


@pytest.fixture
def without(tmp_path):
    """without(base, keys, changes) -> a copy of the base whose config.json has others."""

    def copy(base, *keys, **changed):
        folder = tmp_path / f"base{len(list(tmp_path.iterdir()))}"
        shutil.copytree(base, folder)
        fields = json.loads((folder / "config.json").read_text())
        fields = {key: value for key, value in fields.items() if key not in keys}
        (folder / "config.json").write_text(json.dumps(fields | changed))
        return folder

    return copy


def test_a_base_without_its_facts_is_refused(data_base, without, write_data, qa):
    data = write_data([qa()])
    for edit, words in REFUSED:
        with pytest.raises(ValueError, match=words):
            MultimodalDataset(without(data_base, **edit), data)


def test_training_and_chat_agree_on_absent_keys_and_on_the_hf_form(
    toy_base, tmp_path, without, write_data, make_image, qa
):
    data, folder = write_data([qa("<image>\nQ?", "A.", image="a.png")]), make_image("a.png", 336, 224)
    for keys, expected in ABSENT:
        base = without(toy_base, *keys)
        dataset, session = MultimodalDataset(base, data, folder), ChatSession.from_pretrained(base, device="cpu")
        assert dataset.sources[0].tiling == session.tiling == expected
        assert dataset[0]["num_tiles"] == len(session.tiles([f"{folder}/a.png"])[0])
    for name, base in {"same": toy_base, "one tile": without(toy_base, dynamic_image_size=False)}.items():
        convert(base, tmp_path / name, format="hf")
        one, other = MultimodalDataset(base, data, folder), MultimodalDataset(tmp_path / name, data, folder)
        for field in ("tiling", "template"):
            assert getattr(one.sources[0], field) == getattr(other.sources[0], field)
        assert one[0]["input_ids"].tolist() == other[0]["input_ids"].tolist()
        session = ChatSession.from_pretrained(tmp_path / name, device="cpu")
        assert session.tiling == other.sources[0].tiling
    with pytest.raises(ValueError, match="can't express use_thumbnail=False"):
        convert(without(toy_base, use_thumbnail=False), tmp_path / "hf", format="hf")
