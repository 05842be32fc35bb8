"""The config, and (slow tier) VLMEvalKit's own text: ModelScope publishes it as the package `ms-vlmeval`."""

import ast
import json
import re

import pytest

from tests import published_wheels
from xtuner_plugins.evaluation.vlmevalkit import DATA_CLASSES, JUDGED, VERSION, WRAPPER, make_config, write_config

RELEASE = "0.0.20"
FILES = {
    "ImageMCQDataset": "image_mcq.py",
    "MMMUDataset": "image_mcq.py",
    "ImageYORNDataset": "image_yorn.py",
}  # others: image_vqa.py


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["InternVLChatModel"]}')
    return folder


def test_the_config_names_model_and_benchmarks(export, tmp_path):
    config = make_config(export, data=["MMVet", "MMStar"], max_new_tokens=256, mpo_prompt=True, lmdeploy=True)
    model = {"class": "InternVLChat", "model_path": str(export), "version": "V2.0"}
    assert config["model"] == {"mine": model | {"max_new_tokens": 256, "use_mpo_prompt": True, "use_lmdeploy": True}}
    assert config["data"]["MMStar"] == {"class": "ImageMCQDataset", "dataset": "MMStar"}
    write_config(config, tmp_path / "new" / "a.json")
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == config
    with pytest.raises(ValueError, match="a.json is there already; give another name, or --force"):
        write_config(config, tmp_path / "new" / "a.json")
    write_config({}, tmp_path / "new" / "a.json", force=True)


def test_what_is_not_asked_for_is_left_to_the_wrapper(export):
    config = make_config(export, name="other")
    assert set(config["model"]["other"]) == {"class", "model_path", "version"} and tuple(config["data"]) == JUDGED


def test_an_export_of_this_project_is_taken(toy_base):
    assert make_config(toy_base)["model"][toy_base.name]["model_path"] == str(toy_base)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "holds no config.json; name an export"),
        ("{", "is not JSON"),
        ("[]", "holds None, and VLMEvalKit's wrapper loads InternVLChatModel"),
        ('{"architectures": ["InternVLForConditionalGeneration"]}', "export in the official format"),
    ],
)
def test_other_directories_are_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path)


def test_unknown_benchmarks_are_refused(export):
    with pytest.raises(ValueError, match="'MMVett' is unknown; did you mean MMVet. known are MMBench_DEV_EN"):
        make_config(export, data=["MMVett"])


def function(text, cls, name):
    """The definition of a method."""
    (found,) = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) and node.name == cls]
    return next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == name)


@pytest.mark.release
def test_the_wrapper_takes_these_arguments(export):
    text = published_wheels.read("ms-vlmeval", RELEASE, "vlmeval/vlm/internvl/internvl_chat.py")
    init = function(text, WRAPPER, "__init__")
    config = make_config(export, max_new_tokens=8, mpo_prompt=True, lmdeploy=True)["model"]["mine"]
    names = {argument.arg for argument in init.args.args}
    assert config.keys() - {"class", "max_new_tokens"} <= names and init.args.kwarg.arg == "kwargs"
    assert "kwargs_default = dict(do_sample=False, max_new_tokens=4096" in ast.get_source_segment(text, init)
    assert f"self.version == '{VERSION}'" in ast.get_source_segment(text, function(text, WRAPPER, "generate_inner"))


@pytest.mark.release
def test_a_config_is_read_as_it_is_written():
    text = published_wheels.read("ms-vlmeval", RELEASE, "vlmeval/run.py")
    for line in ("list(cfg['model'].keys())", "list(cfg['data'].keys())", "cls_name = config.pop('class')"):
        assert line in text


@pytest.mark.release
@pytest.mark.parametrize("benchmark, cls", DATA_CLASSES.items())
def test_the_benchmarks_are_known(benchmark, cls):
    text = published_wheels.read("ms-vlmeval", RELEASE, f"vlmeval/dataset/{FILES.get(cls, 'image_vqa.py')}")
    (found,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == cls]
    assert re.search(rf"""^\s+['"]{benchmark}['"]:""", ast.get_source_segment(text, found), re.MULTILINE)


@pytest.mark.release
def test_images_of_other_rows_and_letters_are_read_by_the_same_rules():
    """What `benchmarks/embedded.py` and `metrics/multiple_choice.py` follow."""
    base = published_wheels.read("ms-vlmeval", RELEASE, "vlmeval/dataset/image_base.py")
    assert "if len(image_map[k]) <= 64:" in base
    matching = published_wheels.read("ms-vlmeval", RELEASE, "vlmeval/utils/matching_util.py")
    assert "chars = '.()[],:;!*#{}'" in matching and "splits.index(ch) > (len(splits) - 5)" in matching
