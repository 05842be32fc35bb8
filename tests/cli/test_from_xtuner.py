"""XTuner's own InternVL configs, imported: every value is what XTuner would train with, and the rest is named."""

import os
from pathlib import Path

import pytest
from xtuner.configs import cfgs_name_path

from tests.tools.test_refusals import in_turn
from xtuner_plugins.cli.from_xtuner import import_config
from xtuner_plugins.engine.check.text import check_values
from xtuner_plugins.planning.published import BASES
from xtuner_plugins.settings import SETTINGS, labels_of, read_config, value_at

INTERNVL = sorted(name for name in cfgs_name_path if name.startswith("internvl_v") and name.endswith("finetune"))
LORA = "internvl_v2_internlm2_5_8b_lora_finetune"
HUBS = {base.hub: base for base in BASES.values() if base.hub}
SAME = """train_dataloader.batch_size train_dataloader.num_workers train_dataloader.dataset.max_length
    optim_wrapper.optimizer.lr optim_wrapper.optimizer.betas optim_wrapper.optimizer.weight_decay
    optim_wrapper.clip_grad.max_norm optim_wrapper.accumulative_counts train_cfg.max_epochs
    default_hooks.checkpoint.interval default_hooks.checkpoint.max_keep_ckpts default_hooks.checkpoint.by_epoch
    model.llm_lora.r model.llm_lora.lora_alpha model.llm_lora.lora_dropout""".split()
HOOKS = "custom_hooks=[{'type': DatasetInfoHook, 'tokenizer': {'type': from_pretrained,... is not carried over"
NOTED = ("'float16'", "'dynamic'", HOOKS, "save_optimizer", "hf download")


def edited(folder, *pairs, name=LORA):
    """XTuner's LoRA config of InternVL2-8B, or another one, with other text."""
    text = Path(cfgs_name_path[name]).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (folder / "theirs.py").write_text(text)
    return str(folder / "theirs.py")


@pytest.fixture
def take_over(tmp_path, capsys):
    """take_over(name, base) -> (notes, the last line that was printed, the checked config) of an import to mine.py."""

    def call(name, base=None):
        import_config(name, tmp_path / "mine.py", base, force=True)
        lines, cfg = capsys.readouterr().out.splitlines(), read_config(str(tmp_path / "mine.py"))
        check_values(cfg._to_lazy_dict())
        return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")], lines[-1], cfg

    return call


def differences(name, taken_over, path):
    """What one of XTuner's configs says otherwise than its import."""
    theirs, (notes, launch, ours) = read_config(cfgs_name_path[name])._to_lazy_dict(), taken_over
    pairs = {key: (value_at(ours, key), value_at(theirs, key)) for key in SAME}
    for part, usual in (("visual_encoder", True), ("llm", True), ("projector", False)):  # which XTuner always trains
        key = f"model.freeze_{part}"
        pairs[key] = value_at(ours, key, usual), value_at(theirs, key, usual)
    pairs["base"] = ours.model.base, os.path.abspath(f"models/{HUBS[theirs['model']['model_path']].name}")
    data = ours.train_dataloader.dataset
    for key in ("data_paths", "image_folders"):
        pairs[key] = data[key], [os.path.abspath(theirs["train_dataloader"]["dataset"][key])]
    pairs["warm-up"] = ours.param_scheduler.warmup_ratio, theirs["warmup_ratio"]
    trains = "LoRA on every linear layer of the LLM, projector" if "lora" in name else "projector, LLM"
    pairs["LoRA"] = ("llm_lora" in ours.model, labels_of(path)["trains"]), ("lora" in name, trains)
    pairs["4 bits"] = "llm_quantization" in ours.model, bool(theirs["model"].get("quantization_llm"))
    pairs["dtype"] = value_at(ours, "model.dtype", "auto"), "auto"
    pairs["groups"] = ours.train_dataloader.sampler.group_by, "length"
    pairs["left out"] = {"template", "repeat_times"} & set(data), set()
    started = f"NPROC_PER_NODE=8 python tools/train.py {path} --deepspeed deepspeed_zero{3 - ('lora' in name)}"
    pairs["launch"] = (labels_of(path)["launch"], launch), (started, started)
    pairs["notes"] = [sum(word in note for note in notes) for word in NOTED], [1] * len(NOTED)
    pairs["number of notes"] = len(notes), 7
    return {f"{name} {key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}


def test_every_value_is_xtuners(take_over, tmp_path):
    assert len(INTERNVL) == 21
    found = [differences(name, take_over(name), tmp_path / "mine.py") for name in INTERNVL]
    assert [each for each in found if each] == []


LORA_ON_BOTH = "freeze_llm=True,\n    visual_encoder_lora=dict(type=LoraConfig, r=16),"
EDITS = [
    (('"OpenGVLab/InternVL2-8B"', '"me/mine"'), "hf download me/mine", {"template": "internlm2-chat"}),
    (("PROMPT_TEMPLATE.internlm2_chat", "PROMPT_TEMPLATE.vicuna"), "template ", {"template": None}),
    (("weight_decay = 0.05", "weight_decay = 0.0"), None, {"weight_decay": 0.0}),
    (("type=LengthGroupedSampler", "type=DefaultSampler"), None, {"train_dataloader.sampler.group_by": None}),
    (("type=LengthGroupedSampler", "type=SGD"), "sampler.type=", {}),
    (("max_norm=max_norm", "max_norm=0.5"), None, {"max_grad_norm": 0.5}),
    (("eta_min=0.0", "eta_min=1e-7"), "param_scheduler is not carried over", {}),
    (('dtype="float16"', 'dtype="bfloat16"'), None, {"dtype": "bfloat16"}),
    (("max_epochs=max_epochs)", "max_iters=1001)"), "set warmup_ratio", {"max_steps": 501, "max_epochs": None}),
    (("seed=None", "seed=7"), "randomness.seed=7 is not", {}),
    (("target_modules=None", 'target_modules=["wqkv"]'), "target_modules=['wqkv'] is not", {"lora_targets": None}),
    (("max_length=max_length", "max_length=max_length, repeat_times=[2, .5]"), None, {"repeat_times": [2, 0.5]}),
    (('data_root + "llava_images"', '["/a", "s3://b"]'), None, {"image_folders": ["/a", "s3://b"]}),
    (("freeze_llm=True,", LORA_ON_BOTH), "visual_encoder_lora.r=16 is not carried over", {"lora_rank": 128}),
]


def test_what_a_user_changed_is_carried_over_or_named(take_over, tmp_path):
    optimizer = "from torch.optim import AdamW"
    sgd = (optimizer, f"{optimizer}, SGD\nfrom mmengine.dataset import DefaultSampler")
    plain, *_ = take_over(LORA)
    for edit, note, settings in EDITS:
        notes, _, found = take_over(edited(tmp_path, sgd, edit))
        text = " ".join((tmp_path / "mine.py").read_text().split())
        assert note is None or sum(note in line for line in notes) == 1 > sum(note in line for line in plain), notes
        assert all(line in text for line in notes if "hf download" not in line), note
        values = {name: value_at(found, SETTINGS[name].key if name in SETTINGS else name) for name in settings}
        assert values == settings, edit


def test_the_tool_writes_names_and_replaces_nothing(toy_base, tmp_path):
    name, other = "internvl_v2_phi3_4b_qlora_finetune", "internlm2_7b_qlora_alpaca_e3"
    edited(tmp_path, ("type=InternVL_V1_5_Dataset", "type=AdamW"))
    refused = (
        ([name], f"{name}.py exists; --force replaces it"),
        ([f"{name}.py", "--force"], f"{name}.py is the config itself; name another file with --write"),
        ([name, "--write", "out.txt"], "out.txt: a config is a Python file; name it out.py"),
        (["internvl_v2_internlm2_8b_lora_finetune"], "does not exist; did you mean internvl_v2_internlm2"),
        (["theirs.py", "--write", "out.py"], "dataset.type is AdamW; XTuner's configs of"),
        ([other], "type is SupervisedFinetune; XTuner's configs of InternVL_V1_5 are read, no others"),
    )
    calls = [name], *(words for words, _ in refused), [name, "--force", "--base", str(toy_base)]
    calls = [("configs.py", ["--from-xtuner", *words]) for words in (*calls, [name, "--write", "a/b/c.py"])]
    (status, lines, imported), *found, again, below = in_turn(calls, tmp_path)
    assert (status, imported) == (0, []) and len(lines) == 3 and all("does not exist yet" in line for line in lines)
    for (_, message), (status, lines, _) in zip(refused, found, strict=True):
        assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert again[0] == below[0] == 0 and not any(str(toy_base) in line for line in again[1])
    assert read_config(str(tmp_path / f"{name}.py")).model.base == str(toy_base)
    assert "hf download" not in (tmp_path / f"{name}.py").read_text()
