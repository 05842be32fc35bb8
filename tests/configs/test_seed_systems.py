"""What the five systems that the recipes come from are known for: said by the recipes, and walked with tiny parts."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT, XTP
from tests.engine.parallel_case import write_dataset
from tests.vision_towers import write_tower
from xtuner_plugins.planning.plan import job_of, model_of
from xtuner_plugins.settings import labels_of, leaves, read_config
from xtuner_plugins.toy.models import write_random_parts

LLAVA = "llava_qwen2_5_3b"
FEW = "max_steps=2", "batch_size=2", "accumulative_counts=1", "num_workers=1"  # two steps of two samples


def test_the_parts_that_train_and_the_tokens_of_an_image():
    """The four ways to train a LLaVA; an image of SigLIP takes 169 tokens."""
    ways = {"full": {"visual_encoder", "projector", "llm"}, "freeze_vision": {"projector", "llm"}}
    for way, whole in {**ways, "lora": {"projector"}, "lora_frozen_projector": set()}.items():
        settings = read_config(f"{LLAVA}_{way}")._to_lazy_dict()
        job = job_of(settings, model_of(settings["model"]["base"]))
        assert (set(job.whole), set(job.adapters)) == (whole, {"llm"} if "lora" in way else set()), way
    for name in ("siglip_pretrain", "siglip_sft_lora"):
        settings = read_config(name)._to_lazy_dict()
        assert model_of(settings["model"]["base"]).tokens_per_tile == 169
        assert settings["train_dataloader"]["dataset"]["max_tiles"] == 1


@pytest.mark.slow
def test_siglip_and_qwen_learn_captions_then_instructions_and_answer_about_a_folder(run_tool, tmp_path):
    """The commands are typed in a user's folder, where tiny parts and data lie where the recipes look for them."""

    def xtp(*words):
        done = run_tool("-c", XTP, *words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def train(name):
        said = xtp("train", name, "--set", *FEW)
        assert "step 2/2  " in said and "What this run trains:" in said

    write_tower(tmp_path / "siglip", "siglip", image_size=384)
    parts = {"--vision": tmp_path / "siglip", "--llm": write_random_parts(tmp_path / "parts")[1]}
    typed = labels_of(leaves()["siglip_pretrain"])["starts from"].partition("build_base_model.py ")[2].split()
    assert "169" in xtp("build", *(parts.get(before, word) for before, word in pairwise(["", *typed])))
    for name in ("siglip_pretrain", "siglip_sft_mlp"):
        data = read_config(name).train_dataloader.dataset
        for number, (file, folder) in enumerate(zip(data.data_paths, data.image_folders, strict=True)):
            records, images = write_dataset(tmp_path / f"{name}-{number}", 12)
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(f"[{','.join(records.read_text().splitlines())}]")
            shutil.copytree(images, tmp_path / folder, dirs_exist_ok=True)
    assert "24 records" in xtp("check", "siglip_sft_mlp", "--set", "base=models/SigLIP-Qwen2.5-0.5B")
    train("siglip_pretrain")
    xtp("export", "siglip_pretrain", "work_dirs/siglip_pretrain/iter_2.pth", "exports/siglip_pretrain", "--verify")
    train("siglip_sft_mlp")
    asked = ("--data", folder, "--prompt", "What is it?", "--max-new-tokens", 3, "--out", "answers")
    xtp("evaluate", "work_dirs/siglip_sft_mlp", *asked)
    lines = (tmp_path / "answers" / "answers.jsonl").read_text().splitlines()
    names = {path.name for path in (tmp_path / folder).iterdir()}
    assert {Path(json.loads(line)["id"]).name for line in lines} == names and len(names) == 9
