"""XTuner's own configs for the tests that import them."""

import os
from pathlib import Path

from xtuner.configs import cfgs_name_path

from xtuner_plugins.cli.from_xtuner import import_config
from xtuner_plugins.settings import load_config

LORA = ("r", "lora_alpha", "lora_dropout", "target_modules")
INTERNVL = sorted(name for name in cfgs_name_path if name.startswith("internvl_v") and name.endswith("finetune"))


def written(name, folder, **options):
    out = folder / "mine.py"
    imported = import_config(str(name), out, **options)
    out.write_text(imported.text, encoding="utf-8")
    return imported, load_config(str(out)).to_dict()


def edited(folder, *pairs, name="internvl_v2_internlm2_5_8b_lora_finetune"):
    """XTuner's LoRA config of InternVL2-8B, or another one, with other text."""
    text = Path(cfgs_name_path[name]).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = folder / "theirs.py"
    path.write_text(text)
    return path


def absolute(*paths):
    """As the importer writes paths."""
    return [os.path.abspath(path) for path in paths]


def assert_same_run(ours, theirs):
    """What every kind of config says in the same way is the same: optimizer, schedule, loader, checkpoints."""
    wrapper = theirs["optim_wrapper"]
    for key in ("batch_size", "num_workers"):
        assert ours["train_dataloader"][key] == theirs["train_dataloader"][key]
    for key in ("lr", "betas", "weight_decay"):
        assert ours["optim_wrapper"]["optimizer"][key] == wrapper["optimizer"][key]
    assert ours["optim_wrapper"]["paramwise_cfg"]["part_lr"] == {}
    assert ours["optim_wrapper"]["clip_grad"]["max_norm"] == wrapper["clip_grad"]["max_norm"]
    assert ours["optim_wrapper"]["accumulative_counts"] == wrapper["accumulative_counts"]
    assert ours["param_scheduler"]["warmup_ratio"] == theirs["warmup_ratio"]
    assert ours["train_cfg"]["max_epochs"] == theirs["train_cfg"]["max_epochs"]
    assert "max_iters" not in ours["train_cfg"]
    for key in ("interval", "max_keep_ckpts", "by_epoch"):
        assert ours["default_hooks"]["checkpoint"][key] == theirs["default_hooks"]["checkpoint"][key]
