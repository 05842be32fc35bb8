"""A run goes on from a checkpoint of its own, or is refused in one line before anything is built."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.engine.launch import launcher
from xtuner_plugins.engine.run.runtime import allow_checkpoint_types
from xtuner_plugins.weights import record
from xtuner_plugins.weights.work_dir import read_checkpoint

from ..forked import run_forked
from ..parallel_case import write_dataset

LEAF = "toy_finetune_lora"
SETTINGS = {"batch_size": 2, "accumulative_counts": 2, "num_workers": 0, "max_epochs": 1, "max_length": 512}


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    """A base and data of its own, and the checkpoint after two of four steps."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(toy_base, folder / "base")
    data, images = write_dataset(folder / "data")
    words = command(folder, **SETTINGS)
    env = {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with mock.patch.object(launcher, "run_ranks", lambda ranks, environments: 0):
        assert launcher.main([*words, "--work-dir", str(folder / "w")]) == 0
    config = str(folder / "w" / "settings" / f"{LEAF}.py")
    done = run_forked([config, "--work-dir", str(folder / "w")], env, folder / "w")
    assert done.ok, done.output[-3000:]
    return folder


def command(folder: Path, **settings) -> list[str]:
    """Arguments of `tools/train.py`."""
    own = {"base": folder / "base", "data_paths": folder / "data/train.jsonl", "image_folders": folder / "data/images"}
    return [LEAF, "--set", *(f"{key}={value}" for key, value in {**own, "save_steps": 2, **settings}.items())]


def resume(folder: Path, words: list[str], capsys, **env: str) -> tuple[int, list[str]]:
    """Status and lines of a resume up to where the training would start."""
    with (
        mock.patch.object(launcher, "run_ranks", lambda command, ranks: 0),
        mock.patch.dict("os.environ", XTUNER_PLUGINS_SHARE_CORES="1", **env),
    ):
        status = launcher.main([*words, "--work-dir", str(folder / "x"), "--resume", str(folder / "w/iter_2.pth")])
    return status, capsys.readouterr().err.splitlines()


def edit_json(path: Path, **changes):
    """Changes keys of a JSON file, those of ``llm_config`` too."""
    content = json.loads(path.read_text())
    (content["llm_config"] if next(iter(changes)) in content.get("llm_config", {}) else content).update(changes)
    path.write_text(json.dumps(content))


def permute(path: Path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[-1], *lines[1:-1], lines[0]]) + "\n")


def scale_weight(base: Path):
    tensors = load_file(base / "model.safetensors")
    tensors["mlp1.1.weight"] *= 1.01
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def strip(folder: Path):
    allow_checkpoint_types()
    content = torch.load(folder / "w/iter_2.pth", weights_only=True)
    del content["record"]
    torch.save(content, folder / "w/iter_2.pth")


# What one gives on the command line, and what the refusal says of it.
SETTINGS_REFUSED = {
    "lora_rank=3": r"model.llm_lora.r was \d+ and is 3",
    "lora_alpha=99": r"model.llm_lora.lora_alpha was \d+ and is 99",
    "use_rslora=True": r"model.llm_lora.use_rslora was False and is True",
    "lora_dropout=0.3": r"model.llm_lora.lora_dropout was [\d.]+ and is 0.3",
    "dtype=bfloat16": r"model.dtype was 'torch.float32' and is 'torch.bfloat16'",
    "freeze_projector=True": r"model.freeze_projector was False and is True",
    "batch_size=1": r"samples per step .* were 4 \(2 x 2 x 1\) and are 2 \(1 x 2 x 1\)",
    "accumulative_counts=4": r"samples per step .* and are 8 \(2 x 4 x 1\)",
    "max_grad_norm=0.5": r"optim_wrapper.clip_grad.max_norm was 1.0 and is 0.5",
    "max_length=400": r"train_dataloader.dataset.max_length was 512 and is 400",
    "max_tiles=2": r"data train: tiling was .* and is .*2",
    "loss_reduction=sample": r"dataset.loss_reduction was 'token' and is 'sample'",
    "jpeg_quality=(75, 100)": r"data train: jpeg_quality was 'None' and is",
    "repeat_times=2": r"data train: repeat was 1.0 and is 2",
    "template=Hermes-2": r"data train: template was 'internvl2_5' and is 'Hermes-2'",
    "lr=3e-5": r"optim_wrapper.optimizer.lr was [\d.]+ and is 3e-05",
    "weight_decay=0.2": r"optim_wrapper.optimizer.weight_decay was 0.0 and is 0.2",
    "betas=(0.9, 0.95)": r"optimizer.betas was \[0.9, 0.999\] and is \[0.9, 0.95\]",
    "projector_lr=1e-5": r"paramwise_cfg.part_lr.projector was .* and is 1e-05",
    "loraplus_lr_ratio=16": r"paramwise_cfg.loraplus_lr_ratio was .* and is 16",
    "warmup_ratio=0.5": r"param_scheduler.warmup_ratio was [\d.]+ and is 0.5",
}
# What happens to the files of the run, and what the refusal says of it.
FILES_REFUSED = {
    "permuted data": (lambda run: permute(run / "data/train.jsonl"), r"data train: sha256 was '\w{8}' and is '\w{8}';"),
    "edited data": (
        lambda run: (run / "data/train.jsonl").write_text((run / "data/train.jsonl").read_text().replace("42", "43")),
        "data train: sha256 was",
    ),
    "weights": (
        lambda run: scale_weight(run / "base"),
        "model.safetensors of the base .* has SHA-256 \\w{8}, trained was with \\w{8} of",
    ),
    "tokenizer": (lambda run: (run / "base/merges.txt").write_text("#version: 0.2\n"), "merges.txt of the base"),
    "rope": (lambda run: edit_json(run / "base/config.json", rope_theta=5.0), "config.json of the base"),
    "one more": (lambda run: (run / "base/chat_template.json").write_text("{}"), "chat_template.json of the base"),
    "no record": (strip, "holds no record of its run .*load_from="),
}
NOTED = {
    "max_epochs=2": r"max_epochs was 1 and is 2: .*span",
    "batch_size=1 accumulative_counts=4": r"accumulative_counts was 2 and is 4, with as many samples per step",
    "gradient_checkpointing=False": None,
}


def refused(run, words, capsys, says):
    status, lines = resume(run, words, capsys)
    assert status == 2 and len(lines) == 1, lines
    assert re.search(says, lines[0]) and f"load_from={run}/w/iter_2.pth" in lines[0], lines


KEYS_REFUSED = {
    "train_dataloader.dataset.num_frames=4": "dataset.num_frames was 8 and is 4",
    "optim_wrapper.paramwise_cfg.decay_norms_and_biases=True": "decay_norms_and_biases was False and is True",
    "optim_wrapper.optimizer.type=AdamW8bit": "optim_wrapper.optimizer.type was 'build_adamw' and is 'AdamW8bit'",
}


def test_changed_settings_and_keys_are_refused(run, capsys):
    for setting, says in SETTINGS_REFUSED.items():
        key, _, value = setting.partition("=")
        refused(run, command(run, **{**SETTINGS, key: value}), capsys, says)
    for option, says in KEYS_REFUSED.items():
        refused(run, [*command(run, **SETTINGS), "--cfg-options", option], capsys, says)


def test_another_seed_is_refused_where_one_is_given(run, capsys):
    """The order of the data depends on it; XTuner would take the checkpoint's and say so in a warning."""
    refused(run, [*command(run, **SETTINGS), "--seed", "5"], capsys, "seed was 42 and is 5")
    none = [*command(run, **SETTINGS), "--cfg-options", "randomness.seed=None"]
    assert resume(run, none, capsys) == (0, [])


def test_other_files_and_reject_lists_are_refused(run, capsys, tmp_path):
    data = run / "data/train.jsonl"
    shutil.copy(data, tmp_path / "more.jsonl")
    both = {**SETTINGS, "data_paths": f"{data},{tmp_path}/more.jsonl"}
    refused(run, command(run, **both), capsys, "data_paths had 1 files and has 2")
    rows = [json.dumps({"file": str(data), "row": row}) for row in range(16)]
    (tmp_path / "rejects.jsonl").write_text("\n".join(rows[:-2]))
    rejecting = [
        *command(run, **SETTINGS),
        "--cfg-options",
        f"train_dataloader.dataset.reject_list={tmp_path}/rejects.jsonl",
    ]
    refused(run, rejecting, capsys, r"data train: rejected was \[\] and is \[0, 1, 2")


def test_deepspeed_clips_also_where_the_config_does_not():
    """As XTuner writes it into the strategy, which the run itself reads: the launcher has to expect the same."""
    plain = {"model": {}, "train_dataloader": {"dataset": {"seed": 0}}, "optim_wrapper": {}}
    written = {**plain, "strategy": {"gradient_clipping": 1.0}}
    norms = [record.settings_of(plain), record.settings_of(plain, deepspeed=True), record.settings_of(written)]
    assert [each["optim_wrapper"]["clip_grad"]["max_norm"] for each in norms] == [None, 1.0, 1.0]


def test_another_resize_rule_is_refused(run, capsys):
    with mock.patch("xtuner_plugins.datasets.images.resize_rules.resize_facts", lambda: {"resize_rule": "older"}):
        refused(run, command(run, **SETTINGS), capsys, "resize_rule was .* and is 'older'")


def test_changed_files_are_refused(run, capsys, tmp_path):
    """In a copy at the same place: the record names files by content, not by path."""
    for number, (alter, says) in enumerate(FILES_REFUSED.values()):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        alter(copy)
        refused(copy, command(copy, **SETTINGS), capsys, says)


def test_a_run_that_keeps_no_record_goes_on_without_being_compared(run, capsys, tmp_path):
    """As on MMEngine's own loop. With a record in the checkpoint it is compared all the same."""
    shutil.copytree(run, tmp_path / "copy")
    words = [*command(tmp_path / "copy", **SETTINGS), "--cfg-options", "custom_hooks=[]"]
    refused(tmp_path / "copy", [*words, "model.llm_lora.r=3"], capsys, "lora.r was")
    strip(tmp_path / "copy")
    status, (line,) = resume(tmp_path / "copy", words, capsys)
    assert status == 0 and "note: nothing tells whether" in line


def test_what_is_only_said(run, capsys):
    for settings, says in NOTED.items():
        own = dict(each.split("=") for each in settings.split())
        status, lines = resume(run, command(run, **{**SETTINGS, **own}), capsys)
        assert status == 0 and bool(lines) == bool(says), settings
        assert not lines or any(re.search(says, line) for line in lines), lines


def test_the_same_run_goes_on_anywhere(run, capsys, tmp_path):
    assert resume(run, command(run, **SETTINGS), capsys) == (0, [])
    shutil.copytree(run, tmp_path / "moved")
    status, (line,) = resume(tmp_path / "moved", command(tmp_path / "moved", **SETTINGS), capsys)
    assert status == 0 and "moved/base has the same files as" in line


def test_no_path_of_data_and_no_key_of_a_store_is_kept(run):
    """Their places hold the defaults."""
    said = read_checkpoint(run / "w/iter_2.pth")["record"]
    kept = said["settings"]["train_dataloader"]["dataset"]
    assert not any(kept[key] for key in ("data_paths", "image_folders", "storage_options", "dataset_settings"))
    assert str(run / "data") not in json.dumps(said)


@pytest.mark.parametrize("launcher, variable", [(None, "NPROC_PER_NODE"), *launcher.TASKS.items()])
def test_two_ranks_with_as_many_samples(run, capsys, launcher, variable):
    words = command(run, **{**SETTINGS, "accumulative_counts": 1})
    words += ["--launcher", launcher] if launcher else []
    status, lines = resume(run, words, capsys, **{variable: "2"})
    assert status == 0 and "note: ranks was 1 and is 2" in lines[0], lines
