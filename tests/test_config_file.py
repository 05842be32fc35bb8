"""Nothing that a user sets is ignored: derived configs and command line options reach what is read, or are refused."""

import re
import shutil

import pytest

from tests.configs.test_configs import LEAVES, name, split_leaf
from tests.conftest import ROOT
from xtuner_plugins.config_file import ConfigError, find_config, import_types, load_config, read_config

METHODS = [leaf for leaf in LEAVES if leaf.parent.name == "configs"]  # one leaf per method


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "configs"
    shutil.copytree(ROOT / "configs", folder)
    return folder


def derive(configs, leaf, body, stem="mine"):
    """A config beside ``leaf`` that takes it in."""
    path = configs / leaf.relative_to(ROOT / "configs").with_name(f"{stem}.py")
    path.write_text(
        f"from mmengine.config import read_base\nwith read_base():\n    from .{leaf.stem} import *\n{body}\n"
    )
    return str(path)


@pytest.mark.parametrize("leaf", METHODS, ids=name)
def test_every_setting_that_a_derived_config_changes_in_vain_is_refused(configs, leaf):
    _, settings, _ = split_leaf(leaf)
    for setting in settings:
        path = derive(configs, leaf, f"{setting} = 987654321")
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        message = str(caught.value)
        assert f"mine.py:4: {setting} = 987654321 does nothing: " in message and f"{leaf.name} has already" in message
        assert "\n" not in message and re.search(rf"\(line {line_of(leaf, setting)}\); set [\w.\[\]]+ ", message), (
            message
        )


def line_of(leaf, setting):
    lines = leaf.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(f"{setting} = "))


@pytest.mark.parametrize("leaf", METHODS, ids=name)
def test_the_keys_that_the_message_names_take_effect(configs, leaf):
    with pytest.raises(ConfigError) as caught:
        load_config(derive(configs, leaf, "lr = 0.25"))
    key = re.search(r"set (\S+) here", str(caught.value))[1]
    cfg = load_config(derive(configs, leaf, f"{key} = 0.25"))
    assert cfg.optim_wrapper.optimizer.lr == 0.25
    # Setting both is no mistake.
    assert load_config(derive(configs, leaf, f"lr = 0.25\n{key} = lr")).lr == 0.25


def test_a_derived_config_of_a_derived_config(configs):
    leaf = ROOT / "configs/finetune_lora.py"
    derive(configs, leaf, "train_dataloader.dataset.max_tiles = 6", stem="first")
    second = derive(configs, ROOT / "configs/first.py", "max_tiles = 4", stem="second")
    with pytest.raises(ConfigError, match=r"second.py:4: max_tiles = 4 does nothing.*finetune_lora.py"):
        load_config(second)


def test_settings_that_only_feed_an_expression_count(configs):
    """`persistent_workers=num_workers > 0` isn't the name itself."""
    leaf = ROOT / "configs/pretrain_mlp.py"
    path = derive(configs, leaf, "train_dataloader.num_workers = 0\nnum_workers = 0")
    with pytest.raises(ConfigError, match="set train_dataloader.persistent_workers here"):
        load_config(path)


def test_a_config_that_replaces_the_wiring_is_free_to(configs):
    body = "lr = 0.5\noptim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr))"
    assert load_config(derive(configs, ROOT / "configs/pretrain_mlp.py", body)).optim_wrapper.optimizer.lr == 0.5


def test_a_misspelled_setting_is_refused(configs):
    path = derive(configs, ROOT / "configs/pretrain_mlp.py", "max_tile = 6")
    with pytest.raises(ConfigError, match=r"mine.py:4: nothing reads 'max_tile'; did you mean 'max_tiles'"):
        load_config(path)


def test_a_syntax_error_names_its_line(configs):
    with pytest.raises(ConfigError, match=r"mine.py:5 cannot be read: SyntaxError"):
        load_config(derive(configs, ROOT / "configs/pretrain_mlp.py", "\nlr = = 3"))


@pytest.mark.parametrize("more", ["", "from mmengine.optim import OptimWrapper\n"], ids=["plain", "with imports"])
def test_a_base_of_the_old_kind_is_refused_with_what_to_write(configs, more):
    path = configs / "old.py"
    path.write_text(f'{more}_base_ = ["toy/toy_finetune_packed.py"]\n')
    with pytest.raises(ConfigError) as caught:
        read_config(str(path))
    words = "derive with `with read_base(): from ... import *` (docs/training.md), or make one with tools/new_config.py"
    assert str(caught.value).startswith(f"config {path} cannot be read: `_base_` can't") and words in str(caught.value)


def test_a_dumped_config_is_a_config(configs, tmp_path):
    """MMEngine writes one into every work directory; its settings stand there beside what they went to."""
    load_config(str(ROOT / "configs/finetune_lora.py")).dump(tmp_path / "dumped.py")
    cfg = load_config(str(tmp_path / "dumped.py"), {"optim_wrapper.optimizer.lr": 0.5})
    assert cfg.lr == 1e-4 and cfg.optim_wrapper.optimizer.lr == 0.5


def test_every_leaf_is_found_by_its_name():
    assert {leaf: find_config(leaf.stem) for leaf in LEAVES} == {leaf: name(leaf) for leaf in LEAVES}


def test_a_leaf_is_found_from_anywhere(tmp_path, monkeypatch):
    leaf = ROOT / "configs/finetune_lora.py"
    monkeypatch.chdir(tmp_path)
    assert find_config(leaf.stem) == str(leaf)
    (tmp_path / leaf.stem).mkdir()
    assert find_config(leaf.stem) == str(leaf)
    (tmp_path / f"{leaf.stem}.py").write_text("")
    assert find_config(f"{leaf.stem}.py") == f"{leaf.stem}.py"


@pytest.mark.parametrize("wrong", ["finetune_lorra", "configs/finetune_lorra.py"])
def test_an_unknown_name_gets_the_nearest_ones(wrong):
    with pytest.raises(ConfigError, match=f"config {wrong} does not exist; did you mean .*finetune_lora") as caught:
        find_config(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["zzz", "default_runtime", ""])
def test_what_is_no_config_at_all(wrong):
    with pytest.raises(ConfigError, match="does not exist; tools/list_configs.py lists"):
        find_config(wrong)


def test_another_text_is_run_in_the_files_place(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("model = dict(lr=1)\n")
    cfg = read_config(str(path), {"model.lr": 3}, text="model = dict(lr=2, more=4)\n")
    assert (cfg.model.lr, cfg.model.more, cfg.filename) == (3, 4, str(path))
    with pytest.raises(ConfigError, match=r"mine.py, with --set, cannot be read: ZeroDivisionError"):
        read_config(str(path), text="model = 1 / 0\n")


def test_imports_that_fail_are_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from no_such_library import Model\n\nmodel = dict(type=Model)\n")
    cfg = read_config(str(path))  # reading imports nothing
    with pytest.raises(ConfigError, match=r"mine.py cannot be read: ModuleNotFoundError: .*no_such_library"):
        import_types(cfg)
