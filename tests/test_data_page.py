"""docs/data.md does what it says: its commands are run, its records are loaded, its masks are drawn by the code."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT
from xtuner_plugins import datasets
from xtuner_plugins.audit.page import token_runs
from xtuner_plugins.datasets import MultimodalDataset

PAGE, CHINESE = ROOT / "docs/data.md", ROOT / "docs/data_zh-CN.md"


def blocks(page=PAGE, language=None):
    """The page's fenced blocks, in order; all of them, or those of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return found if language is None else [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def project(tmp_path_factory, toy_base):
    """A user's folder: everything that the page's commands and records name, small."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in ("models/base", "models/InternVL3_5-2B"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(toy_base)
    (folder / "A/clip.mp4").mkdir(parents=True)  # a folder of frames, whatever its name
    for name in ("bus.jpg", "left.jpg", "right.jpg", *(f"clip.mp4/{frame}.png" for frame in range(4))):
        Image.new("RGB", (640, 480), (200, 30, 30)).save(folder / "A" / name)
    (folder / "data/mine").mkdir(parents=True)
    for name in ("B", "a", "c", "data/mine/images"):
        (folder / name).symlink_to(folder / "A")
    records = [json.loads(text) for text in (blocks(language="json")[0], *blocks(language="jsonl")[0].splitlines())]
    for name in ("data/mine/train.jsonl", "a.jsonl", "a.json", "b.json", "c.json"):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "b.jsonl").write_text('{"query": "Hi?", "response": "Hi."}\n' * 8)
    return folder


def test_commands_work(project, run_tool):
    """As they stand, in a folder of the user's; only the tools' own place is put in front."""
    commands = [shlex.split(line) for text in blocks(language="bash") for line in text.splitlines()]
    assert len(commands) >= 6
    for _, tool, *words in commands:
        done = run_tool(ROOT / tool, *words, cwd=project)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert "records can be trained on" in done.stdout or "check_data" not in tool
        for option in {"--html", "--json", "--reject-list"} & set(words):
            assert Path(project, words[words.index(option) + 1]).exists()


def test_mixtures_are_built_as_shown(project, monkeypatch):
    monkeypatch.chdir(project)
    mixture, plan = blocks(language="python")
    exec(mixture, names := dict(vars(datasets)))
    settings = names["train_dataloader"]["dataset"]
    dataset = settings.pop("type")(**settings)
    assert len(dataset) == 2 * 9 + 4 + 3 * 9 + round(4.5 + 0.01)
    assert [source.name for source in dataset.sources] == ["a", "b", "charts"]
    assert dataset.sources[2].tiling.max_tiles == 24 and dataset.sources[2].loss_weight == 0.5
    exec(plan, names)
    sampler, packs, collate = (names["train_dataloader"][key] for key in ("sampler", "batch_sampler", "collate_fn"))
    packs = packs.pop("type")(sampler.pop("type")(dataset, seed=0, **sampler), **packs)
    batch = collate["type"]([dataset[index] for index in next(iter(packs))])
    assert batch["input_ids"].shape[0] == 1 and batch["cu_seqlens"][-1] <= 8192


def draw(dataset, sample):
    """A sample as the page draws it: learned runs in brackets, a line per turn."""
    runs = token_runs(dataset.tokenizer, sample["input_ids"].numpy(), sample["labels"].numpy())
    text = "".join({"learn": f"[{text}]", "span": "(256 x tiles)"}.get(kind, text) for kind, text in runs)
    text = re.sub(r"(system\\n).*?(<\|im_end\|>)", r"\1...\2", text.replace("\n", r"\n"), count=1)
    return re.sub(r"(<\|im_end\|>\]?\\n)", r"\1" + "\n", text)


def test_every_record_trains_with_the_masks_that_are_shown(project):
    paths = [str(project / name) for name in ("models/base", "a.jsonl", "A")]
    dataset = MultimodalDataset(*paths, max_length=2000, num_frames=2)
    samples = list(dataset)
    assert len(samples) == 9 and all((sample["labels"] != -100).any() for sample in samples)
    drawn = [draw(dataset, sample) for sample in samples]
    assert blocks(language="mask") == [drawn[number] for number in (0, 3, 6)]
    boxes = [re.findall("<box>.*</box>", text) for text in drawn[-2:]]
    assert boxes[0] == boxes[1] == ["<box>[[100, 100, 500, 500]]</box>"]


def test_both_languages_show_the_same():
    assert blocks(CHINESE) == blocks(PAGE)
