"""Nothing that a user sets is ignored: configs and command lines reach the one key that is read, or are refused.

Refused words of the command line are in tests/golden/wrong_inputs.tsv.
"""

import re
from pathlib import Path

import pytest
import xtuner

from tests.conftest import ROOT
from xtuner_plugins import settings
from xtuner_plugins.settings import SETTINGS, ConfigError, find_config, parse_words, read_config, read_deepspeed

DATA = "train_dataloader.dataset"
LORA = "finetune_lora"
TAKES_IN = "from mmengine.config import read_base\nwith read_base():\n    from {} import *\n{}\n"


def write(folder, body, parent=f"xtp_configs.{LORA}", name="mine.py"):
    path = folder / "my-run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(TAKES_IN.format(parent, body))
    return str(path)


def refused(message, call, *args):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


def test_a_config_anywhere_on_disk_inherits(tmp_path):
    """From a folder whose name is no module, over two files; what follows from the base and the workers follows."""
    body = "data_root = '/data'\nmodel.base = 'models/mine'\ntrain_dataloader.num_workers = 0\n"
    write(tmp_path, body + f"{DATA}.data_paths = [data_root + '/a.jsonl']")
    second = write(tmp_path, "optim_wrapper.optimizer.lr = 0.25", ".mine", "second.py")
    cfg = read_config(second, parse_words(["lora_rank=8"]))
    assert (cfg.optim_wrapper.optimizer.lr, cfg.model.llm_lora.r, cfg.model.llm_lora.lora_alpha) == (0.25, 8, 32)
    dataset = cfg.train_dataloader.dataset
    assert dataset.base == cfg.model.base == "models/mine" and dataset.data_paths == ["/data/a.jsonl"]
    assert cfg.train_dataloader.persistent_workers is False
    refused(f"{DATA}.base is 'other', but the tokenizer is", read_config, write(tmp_path, f"{DATA}.base = 'other'"))
    assert read_config(LORA, {f"{DATA}.base": "x/../y", "model.base": "y"}).train_dataloader.persistent_workers
    for name in ("toy_mmengine_loop", write(tmp_path, f"model.base = {DATA}.base = 'one'", name="both.py")):
        assert read_config(name, {"model.base": "moved"}).train_dataloader.dataset.base == "moved"


def test_names_that_nothing_reads(tmp_path):
    for body, message in {
        "lr = 0.25": "nothing reads 'lr'; write optim_wrapper.optimizer.lr = ...",
        "max_tiles = 6": f"nothing reads 'max_tiles'; write {DATA}.max_tiles = ...",
        "modle = dict()": "nothing reads 'modle'; did you mean 'model'?",
        "\nlr = = 3": "mine.py:5 cannot be read: SyntaxError",
    }.items():
        refused(message, read_config, write(tmp_path, body))
    assert read_config(write(tmp_path, "lr = 0.5\noptim_wrapper.optimizer.lr = lr")).optim_wrapper.optimizer.lr == 0.5


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f'_base_ = ["{ROOT}/configs/finetune_lora.py"]\n')
    with pytest.raises(ConfigError, match="`_base_` can't take in .* derive with `with read_base"):
        read_config(str(path))
    path.write_text("from no_such_library import Model\n\nmodel = dict(type=Model)\n")
    cfg = read_config(str(path))  # reading imports nothing
    with pytest.raises(ConfigError, match=r"mine.py cannot be read: ModuleNotFoundError: .*no_such_library"):
        settings.import_types(cfg)


def test_every_short_name_has_a_place():
    """In one of the configs, or as a keyword of a class."""
    from xtuner_plugins.engine.check.signatures import parameters

    found = [read_config(name) for name in ("finetune_qlora", "finetune_packed", "finetune_mpo_full", "flash_router")]
    for name, setting in SETTINGS.items():
        at, _, last = setting.key.rpartition(".")
        places = [place for place in (settings.value_at(cfg, at) for cfg in found) if isinstance(place, dict)]
        kinds = [dict.__getitem__(place, "type") for place in places if "type" in place]
        known = [parameters(kind._module, kind._imported) for kind in kinds]
        is_keyword = any(last in each.hints or each.takes_any for each in known)
        assert is_keyword or any(last in place for place in places) or "paramwise_cfg" in at, name


VALUES = {
    **{"1": 1, "1e-4": 1e-4, "true": True, "None": None, "": "", "a b": "a b", "1,2": [1, 2], "(1,2)": (1, 2)},
    **{"[a, b]": ["a", "b"], "a b/c,d": ["a b/c", "d"], "[None,None]": [None, None]},
    **{text: text for text in ("shards/{000..009}.tar", "{a,b}.jsonl", "(q|k)_proj", "s3://b/{a}.tar", "C:\\a.jsonl")},
    **{repr(value): value for value in ({}, {"crop": 1.5, "q": (75, 100)}, [{"a": 1}, None], [None, {"a": {"b": 2}}])},
}


def test_values_of_the_command_line():
    for text, value in VALUES.items():
        assert parse_words([f"a.b={text}"]) == parse_words((), [f"a.b={text}"]) == {"a.b": value}, text


def test_a_dict_takes_the_place_of_the_value():
    changes = {f"{DATA}.jpeg_quality": {"crop": 0.5}, "optim_wrapper.clip_grad": {"max_norm": 2}}
    cfg = read_config(LORA, {**changes, "custom_hooks.0.mine": 1})
    assert cfg.train_dataloader.dataset.jpeg_quality == {"crop": 0.5} and cfg.optim_wrapper.clip_grad == {"max_norm": 2}
    assert cfg.custom_hooks[0].mine == 1
    changes[f"{DATA}.jpeg_quality.crop"] = 0.25
    assert read_config(LORA, changes).train_dataloader.dataset.jpeg_quality == {"crop": 0.25}


def test_a_leaf_is_found_from_anywhere(tmp_path, monkeypatch):
    leaf = ROOT / "configs/finetune_lora.py"
    assert find_config(LORA) == "configs/finetune_lora.py"
    monkeypatch.chdir(tmp_path)
    assert find_config(LORA) == str(leaf)
    (tmp_path / LORA).mkdir()
    assert find_config(LORA) == str(leaf)
    (tmp_path / f"{LORA}.py").write_text("")
    assert find_config(f"{LORA}.py") == f"{LORA}.py"
    for wrong in ("zzz", "run", ""):
        refused(f"config {wrong} does not exist; xtp configs lists", find_config, wrong)


def test_labels_go_on_over_lines(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Title.\n\ndata            a,\n                b\nother  c\nlaunch          d\n"""\n')
    assert settings.labels_of(path) == {"title": "Title.", "data": "a, b", "launch": "d"}


def test_deepspeeds_files(tmp_path, monkeypatch):
    """They have XTuner's names; a file of one's own stays. Engines are in engine/run/test_gradient_sums.py."""
    theirs = Path(xtuner.__file__).parent / "configs" / "deepspeed"
    assert {*settings.DEEPSPEED} == {path.stem for path in theirs.glob("*.json")} and len(settings.DEEPSPEED) == 5
    for name in settings.DEEPSPEED:
        zero = read_deepspeed(name)["zero_optimization"]
        assert zero["stage"] == int(name[14]) and ("offload_optimizer" in zero) == name.endswith("offload")
    monkeypatch.chdir(tmp_path)
    for name, text in {"deepspeed_zero2": "{}", "broken.json": "{", "list.json": "[1]"}.items():
        Path(name).write_text(text)
    assert read_deepspeed("deepspeed_zero2") == {}
    refused("no such file or name; give a JSON file or one of", read_deepspeed, "ffff")
    for name in ("broken.json", "list.json"):
        refused("holds no JSON object", read_deepspeed, name)
