"""Every recipe uses each of its settings, says what it is, and inherits without a clash (training: tests/recipes)."""

import ast
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from xtuner_plugins.config_file import ConfigError, load_config
from xtuner_plugins.engine.config_check import check_config, typed_nodes

ROOT = Path(__file__).resolve().parents[2]
LEAVES = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)
BASES = sorted((ROOT / "configs" / "_base_").rglob("*.py"))


def name(path):
    return str(path.relative_to(ROOT))


def split_leaf(path):
    """(tree, settings, names read below the wiring line)."""
    source = path.read_text()
    line = next(i for i, text in enumerate(source.splitlines(), 1) if text.startswith("# ---") and "Wiring" in text)
    tree = ast.parse(source)
    settings, used = [], set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.lineno < line:
            settings += [target.id for target in node.targets]
        elif node.lineno > line:
            used |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return tree, settings, used


def test_every_setting_is_read_by_the_wiring():
    for path in LEAVES:
        _, settings, used = split_leaf(path)
        assert settings and [s for s in settings if s not in used] == [], name(path)


def test_every_leaf_is_labeled():
    for path in LEAVES:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        for word in ("trains", "frozen", "starts from", "data", "hardware", "launch"):
            assert re.search(rf"^ *{word}  ", doc, re.MULTILINE), f"{name(path)} doesn't say: {word}"


def test_xtuner_prepares_the_runtime_first():
    from xtuner_plugins.engine.runtime import prepare_runtime

    for path in LEAVES:
        cfg = Config.fromfile(path)
        assert cfg.model_resource["fn"] is prepare_runtime, name(path)
        assert cfg.pretrained_model_name_or_path == cfg.model.base == cfg.train_dataloader.dataset.base, name(path)


def test_stems_are_unique():
    stems = [path.stem for path in LEAVES]
    assert len(set(stems)) == len(stems), "XTuner keys work directories by stem"


def test_no_two_bases_share_a_key():
    owners = {}
    for path in BASES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    assert owners.setdefault(target.id, path) == path, f"{target.id}: {owners[target.id]} and {path}"


def test_misspelled_keyword_names_the_place_and_the_right_word(tmp_path):
    source = (ROOT / "configs/pretrain_mlp.py").read_text().replace("freeze_llm=freeze_llm", "freze_llm=freeze_llm")
    folder = tmp_path / "configs"
    (folder / "_base_").mkdir(parents=True)
    (folder / "_base_/default_runtime.py").write_text((ROOT / "configs/_base_/default_runtime.py").read_text())
    (folder / "wrong.py").write_text(source)
    with pytest.raises(ConfigError, match=r"model\.freze_llm: VisionLanguageModel .* did you mean 'freeze_llm'"):
        check_config(load_config(str(folder / "wrong.py")))


@pytest.mark.parametrize(
    "option, message",
    [
        ("lr", "already read lr; set optim_wrapper.optimizer.lr instead"),
        ("modle.base", "did you mean 'model'"),
        ("nonsense", "nothing reads"),
    ],
)
def test_options_that_change_nothing_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(str(ROOT / "configs/pretrain_mlp.py"), {option: 1})


def test_missing_base_names_the_remedy():
    with pytest.raises(ConfigError, match="build_base_model.py"):
        check_config(load_config(str(ROOT / "configs/pretrain_mlp.py"), {"model.base": "no/such/dir"}))


def test_typed_nodes_name_their_place():
    nodes = dict(typed_nodes({"a": {"type": "X", "b": [{"type": "Y"}]}}))
    assert set(nodes) == {"a", "a.b[0]"}
