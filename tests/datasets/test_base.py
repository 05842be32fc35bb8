"""One reader of a model directory: training and chat agree, whatever it leaves out and whatever its format."""

import json
import shutil

import pytest

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.base import read_base, work_rates
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.opening import open_session

ALL = ("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "force_image_size")
ABSENT = [  # keys that are missing; least and most tiles, and whether there is a thumbnail
    (["dynamic_image_size"], (1, 1, True)),
    (["use_thumbnail"], (1, 12, False)),
    (["max_dynamic_patch"], (1, 6, True)),
    (["min_dynamic_patch"], (1, 12, True)),
    (ALL, (1, 1, False)),
]
REFUSED = [
    ({"vision_config": {"model_type": "intern_vit_6b", "patch_size": 0}}, "vision_config: patch_size is 0"),
    ({"downsample_ratio": 0.3}, "has sizes of no grid"),
    ({"llm_config": {"model_type": "nothing"}}, "model_type 'nothing'"),
    ({"template": None}, "names no 'template'"),
]


@pytest.fixture
def without(tmp_path):
    """without(base, keys, changes) -> a copy of the base whose config.json has others."""

    def copy(base, *keys, **changed):
        folder = shutil.copytree(base, tmp_path / f"base{len(list(tmp_path.iterdir()))}")
        fields = json.loads((folder / "config.json").read_text()) | changed
        (folder / "config.json").write_text(json.dumps({name: fields[name] for name in fields if name not in keys}))
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

    def read(base):
        dataset, session = MultimodalDataset(base, data, folder), open_session(base, device="cpu")
        source, sample = dataset.sources[0], dataset[0]
        assert source.tiling == session.tiling
        assert sample["num_tiles"] == len(session.tiles([f"{folder}/a.png"])[0])
        return source.tiling, source.template, sample["input_ids"].tolist()

    for keys, (least, most, has_thumbnail) in ABSENT:
        assert read(without(toy_base, *keys))[0] == DynamicTiling(least, most, 112, has_thumbnail)
    for name, base in {"same": toy_base, "one tile": without(toy_base, dynamic_image_size=False)}.items():
        convert(base, tmp_path / name, format="hf")
        assert read(base) == read(tmp_path / name)


MIXED = {"model_type": "qwen3_moe", "head_dim": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 100}


def test_the_work_of_tokens_and_tiles_by_hand(data_base, without):
    """Of 32 layers of width 4096 with 32 heads and 8 of keys; 48 layers of width 3200 see 16 x 16 patches of a tile."""
    tile = 256 * 48 * (2 * (4 * 3200**2 + 2 * 3200 * 12800) + 4 * 256 * 3200)
    for llm, head_dim, inner in (({"model_type": "qwen2"}, 128, 11008), (MIXED, 64, 4 * 100)):
        sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        config = read_base(
            without(data_base, force_image_size=224, llm_config=sizes | {"intermediate_size": 11008} | llm)
        )
        token = 2 * 32 * 4096 * (2 * (32 + 8) * head_dim + 3 * inner)
        assert work_rates(config) == (2 * 32 * head_dim * 32, token, tile)
    config.vision_config.use_gated_mlp = True  # a third matrix
    assert work_rates(config)[2] == tile + 256 * 48 * 2 * 3200 * 12800
