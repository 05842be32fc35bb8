"""What the five systems that the recipes come from are known for: said by the recipes, and walked with tiny parts."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT, XTP
from tests.engine.forked import write_dataset
from tests.vision_towers import write_tower
from tests.weights.language_models import write_llm
from xtuner_plugins.planning.plan import job_of, model_of
from xtuner_plugins.settings import labels_of, leaves, read_config
from xtuner_plugins.toy.models import write_random_parts

LLAVA = "llava_qwen2_5_3b"
FEW = dict(max_steps=2, batch_size=2, accumulative_counts=1, num_workers=1)  # two steps of two samples


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


class Place:
    """A user's folder: commands are typed there, and data lies where the recipes look for it."""

    def __init__(self, folder, run_tool):
        self.folder, self.run_tool = folder, run_tool

    def type(self, *words):
        """What `xtp WORDS` prints."""
        done = self.run_tool("-c", XTP, *words, cwd=self.folder, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def build(self, name, vision, llm):
        """Types the command of a recipe's docstring with tiny parts in the places of the published ones."""
        words = labels_of(leaves()[name])["starts from"].partition("build_base_model.py ")[2].split()
        parts = {"--vision": vision, "--llm": llm}
        return self.type("build", *(parts.get(before, word) for before, word in pairwise(["", *words])))

    def lay_out(self, *names):
        """Writes records, an array or lines as the file's name says, to the files of recipes."""
        for name in names:
            found = read_config(name).train_dataloader.dataset
            for number, (file, images) in enumerate(zip(found.data_paths, found.image_folders, strict=True)):
                lines, made = write_dataset(self.folder / f"{name}-{number}", 12)
                target, records = self.folder / file, lines.read_text()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(records if file.endswith("l") else f"[{','.join(records.splitlines())}]")
                shutil.copytree(made, self.folder / images, dirs_exist_ok=True)

    def train(self, name, *settings):
        """What two steps of a recipe print."""
        said = self.type("train", name, "--set", *(f"{key}={value}" for key, value in FEW.items()), *settings)
        assert "step 2/2  " in said and "What this run trains:" in said
        return said

    def export(self, name, *words):
        """Exports the last checkpoint of a recipe's run to exports/NAME, and verifies it."""
        self.type("export", name, f"work_dirs/{name}/iter_2.pth", f"exports/{name}", "--verify", *words)


@pytest.fixture
def place(tmp_path, run_tool):
    return Place(tmp_path, run_tool)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_random_parts(tmp_path_factory.mktemp("parts"))[1]


@pytest.mark.slow
def test_siglip_and_qwen_learn_captions_then_instructions_and_answer_about_a_folder(place, llm):
    write_tower(place.folder / "siglip", "siglip", image_size=384)
    assert "169" in place.build("siglip_pretrain", place.folder / "siglip", llm)
    place.lay_out("siglip_pretrain", "siglip_sft_mlp")
    said = place.type("check", "siglip_sft_mlp", "--set", "base=models/SigLIP-Qwen2.5-0.5B")
    assert "24 records" in said
    place.train("siglip_pretrain")
    place.export("siglip_pretrain")
    place.train("siglip_sft_mlp")
    folder = Path(read_config("siglip_sft_mlp").train_dataloader.dataset.image_folders[0])
    asked = ("--data", folder, "--prompt", "What is it?", "--max-new-tokens", 3, "--out", "answers")
    place.type("evaluate", "work_dirs/siglip_sft_mlp", *asked)
    lines = (place.folder / "answers" / "answers.jsonl").read_text().splitlines()
    names = {path.name for path in (place.folder / folder).iterdir()}
    assert {Path(json.loads(line)["id"]).name for line in lines} == names and len(names) == 9


@pytest.mark.slow
def test_clip_and_qwen_7b_learn_from_captions_behind_a_map_of_images(place, llm):
    write_tower(place.folder / "clip", "clip")
    place.build("clip_qwen_7b_lora", place.folder / "clip", write_llm("qwen", place.folder / "qwen", llm))
    place.lay_out("clip_qwen_7b_lora")
    images = place.folder / "data" / "coco" / "train2017"
    paired = {f"{n}.png": {"image_file": f"{n}.png", "ID": str(n), "path": str(images)} for n in (0, 1, 2)}
    texts = {str(n): {"q": "<|extra_0|>What is it?", "a": ["A square.", "A sign."]} for n in (0, 1, 2)}
    (place.folder / "image_map.json").write_text(json.dumps(paired))
    (place.folder / "captions.json").write_text(json.dumps(texts))
    said = place.type("prepare", "basic-vlm", ".", "data/basic.jsonl", "--image-folder", images)
    assert "3 records read, 6 written" in said
    mixed = "data_paths=[data/basic.jsonl,data/LLaVA-Instruct-150K/detail_23k.json,data/ai_challenger/train.jsonl]"
    place.train("clip_qwen_7b_lora", mixed)
    place.export("clip_qwen_7b_lora")


@pytest.mark.slow
def test_llava_trains_in_its_four_ways_from_its_own_first_stage(place, llm):
    write_tower(place.folder / "clip", "clip")
    place.build("llava_pretrain", place.folder / "clip", llm)
    place.lay_out("llava_pretrain", f"{LLAVA}_full")
    place.train("llava_pretrain")
    place.export("llava_pretrain")
    for way in ("full", "freeze_vision", "lora", "lora_frozen_projector"):
        place.train(f"{LLAVA}_{way}")
    place.export(f"{LLAVA}_full", "--format", "llava")
