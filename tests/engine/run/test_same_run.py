"""A run goes on from a checkpoint of its own, or is refused in one line before anything is built.

Which records are those of the same run is tested in tests/weights/test_record.py.
"""

import io
import json
import re
import shutil
from contextlib import redirect_stderr
from unittest import mock

import pytest
import torch

from xtuner_plugins.engine.launch import launcher
from xtuner_plugins.weights.work_dir import read_checkpoint

from ..forked import run_forked, write_dataset

LEAF = "toy_finetune_lora"


def command(folder, *settings):
    """Arguments of `tools/train.py`."""
    places = {"base": "base", "data_paths": "data/train.jsonl", "image_folders": "data/images"}
    own = [f"{key}={folder / path}" for key, path in places.items()]
    own += ["batch_size=2", "accumulative_counts=2", "num_workers=0", "max_epochs=1", "max_length=512", "save_steps=2"]
    return [LEAF, "--set", *own, *settings]


def launched(words, **env):
    """Status and lines of the launcher, which starts nothing."""
    with (
        mock.patch.object(launcher, "run_ranks", lambda command, ranks: 0),
        mock.patch.dict("os.environ", XTUNER_PLUGINS_SHARE_CORES="1", **env),
        redirect_stderr(io.StringIO()) as said,
    ):
        return launcher.main(words), said.getvalue().splitlines()


def trained(folder, *words):
    """A run of the written config, which no launcher has compared with a checkpoint."""
    words = [str(folder / "w" / "settings" / f"{LEAF}.py"), "--work-dir", str(folder / "w"), *words]
    return run_forked(words, {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}, folder / "w")


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    """A base and data of its own, and the checkpoint after two of four steps."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(toy_base, folder / "base")
    write_dataset(folder / "data")
    assert launched([*command(folder), "--work-dir", str(folder / "w")])[0] == 0
    done = trained(folder)
    assert done.ok, done.output[-3000:]
    return folder


def resume(folder, words, **env):
    """Status and lines of a resume up to where the training would start."""
    return launched([*words, "--work-dir", str(folder / "x"), "--resume", str(folder / "w/iter_2.pth")], **env)


def refused(folder, words, says):
    """The resume ends in one line, with what starts a new run from these weights: of another model its export."""
    status, lines = resume(folder, words)
    assert status == 2 and len(lines) == 1, (words, lines)
    anew = "with the export as its base" if says.startswith("model.") else f"load_from={folder}/w/iter_2.pth"
    assert re.search(says, lines[0]) and anew in lines[0], lines


# What one gives on the command line, and what the refusal says of it.
REFUSED = {
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
    "train_dataloader.dataset.num_frames=4": "dataset.num_frames was 8 and is 4",
    "optim_wrapper.paramwise_cfg.decay_norms_and_biases=True": "decay_norms_and_biases was False and is True",
    "optimizer=AdamW8bit": "optim_wrapper.optimizer.type was 'build_adamw' and is 'AdamW8bit'",
    "optim_wrapper.constructor=DefaultOptimWrapperConstructor": r"constructor was 'Grouped\w+' and is 'Default",
    "default_hooks.param_scheduler=None": "default_hooks.param_scheduler was True and is False",
    "randomness.seed=5": "seed was 42 and is 5",
    "data_paths={more}": "data_paths had 1 files and has 2",
    "train_dataloader.dataset.reject_list={rejects}": r"data train: rejected was \[\] and is \[0, 1, 2",
}
NOTED = {
    "max_epochs=2": r"max_epochs was 1 and is 2: .*span",
    "batch_size=1 accumulative_counts=4": r"accumulative_counts was 2 and is 4, with as many samples per step",
    **dict.fromkeys(("gradient_checkpointing=False", "randomness.seed=None", "lr=1e-3")),
}


def test_changed_settings_are_refused_or_told(run, tmp_path):
    """Another seed, too, where one is given: XTuner would take the checkpoint's and say so in a warning."""
    data = run / "data/train.jsonl"
    shutil.copy(data, tmp_path / "more.jsonl")
    rows = [json.dumps({"file": str(data), "row": row}) for row in range(14)]
    (tmp_path / "rejects.jsonl").write_text("\n".join(rows))
    places = {"more": f"{data},{tmp_path}/more.jsonl", "rejects": tmp_path / "rejects.jsonl"}
    for setting, says in REFUSED.items():
        refused(run, command(run, setting.format(**places)), says)
    refused(run, [*command(run), "--seed", "5"], "seed was 42 and is 5")
    with mock.patch("xtuner_plugins.datasets.images.resize_rules.resize_facts", lambda: {"resize_rule": "older"}):
        refused(run, command(run), "resize_rule was .* and is 'older'")
    for settings, says in NOTED.items():
        status, lines = resume(run, command(run, *settings.split()))
        assert status == 0 and bool(lines) == bool(says), (settings, lines)
        assert not lines or any(re.search(says, line) for line in lines), lines
    for name, variable in ((None, "NPROC_PER_NODE"), *launcher.TASKS.items()):
        words = [*command(run, "accumulative_counts=1"), *(["--launcher", name] if name else [])]
        status, lines = resume(run, words, **{variable: "2"})
        assert status == 0 and "note: ranks was 1 and is 2" in lines[0], lines


# A file of the run, what becomes of its bytes, and what the refusal says of it.
FILES_REFUSED = [
    ("data/train.jsonl", lambda old: b"".join(old.splitlines(True)[::-1]), r"data train: sha256 was '\w{8}' "),
    ("base/model.safetensors", lambda old: old[:-1] + b"?", r"base .* has SHA-256 \w{8}, but it trained with \w{8} of"),
    ("base/merges.txt", lambda old: b"#version: 0.2\n", "merges.txt of the base"),
    ("base/config.json", lambda old: old.replace(b'"rope_theta"', b'"rope"'), "config.json of the base"),
    ("base/chat_template.json", lambda old: b"{}", "chat_template.json of the base"),
]


def strip(run):
    content = torch.load(run / "w/iter_2.pth", weights_only=False)
    del content["record"]
    torch.save(content, run / "w/iter_2.pth")


def test_changed_files_are_refused_and_moved_ones_are_not(run, tmp_path):
    """The record names files by content. Without one a run goes on; one that is there is compared all the same."""
    assert resume(run, command(run)) == (0, [])
    moved = shutil.copytree(run, tmp_path / "moved")
    for name, change, says in FILES_REFUSED:
        before = (moved / name).read_bytes() if (moved / name).exists() else None
        (moved / name).write_bytes(change(before))
        refused(moved, command(moved), says)
        (moved / name).write_bytes(before) if before else (moved / name).unlink()
    status, (line,) = resume(moved, command(moved))
    assert status == 0 and "moved/base has the same files as" in line
    words = [*command(moved), "--cfg-options", "custom_hooks=[]"]
    refused(moved, [*words, "model.llm_lora.r=3"], "model.llm_lora.r was")
    strip(moved)
    refused(moved, command(moved), "holds no record of its run .*load_from=")
    status, (line,) = resume(moved, words)
    assert status == 0 and "note: no StateHook in custom_hooks (a list" in line
    assert launched([*words, "--work-dir", str(moved / "x")])[1][1:] == [line]


def test_the_record_names_no_path_and_is_compared_by_the_run_itself(run):
    said = read_checkpoint(path := run / "w/iter_2.pth")["record"]
    assert str(run / "data") not in json.dumps(said)
    assert said["run"]["steps"] == 2 and said["run"]["hardware"].startswith("1 x ")
    other = trained(run, "--resume", str(path), "--cfg-options", "model.llm_lora.lora_alpha=3")
    assert other.codes == [2] and len(other.errors) == 1
    assert re.search(f"{path}: .*lora_alpha was \\d+ and is 3.*the export as its base", other.errors[0])
