"""A base directory as the data side sees one: a config.json and a tokenizer, no weights."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.text.tokens import TextTokenizer
from xtuner_plugins.files import CACHE_VARIABLE
from xtuner_plugins.toy.tokenizer import build_tokenizer

NINE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CONFIG = {
    "model_type": "internvl_chat",
    "architectures": ["InternVLChatModel"],
    "template": "internvl2_5",
    "force_image_size": 112,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "max_dynamic_patch": 6,
    "vision_config": {"model_type": "intern_vit_6b", "patch_size": 14, "image_size": 112},
    "llm_config": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
}


@pytest.fixture(scope="session")
def data_base(tmp_path_factory):
    """Tiles of 112 px become 16 tokens; at most 6 tiles and a thumbnail."""
    tokenizer = AutoTokenizer.from_pretrained(build_tokenizer(out := tmp_path_factory.mktemp("data_base")))
    # control tokens of the other templates too, so that each can be rendered
    extra = "<|system|> <|user|> <|assistant|> <|end|> <|start_header_id|> <|end_header_id|> <|eot_id|> </s>"
    tokenizer.add_tokens(NINE + extra.split(), special_tokens=True)
    tokenizer.save_pretrained(out)
    (out / "config.json").write_text(json.dumps(CONFIG))
    return out


@pytest.fixture(scope="session")
def hf_tokenizer(data_base):
    return AutoTokenizer.from_pretrained(data_base)


@pytest.fixture(scope="session")
def text_tokenizer(data_base):
    return TextTokenizer.from_pretrained(data_base)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The directory of indices and lengths, each test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write_data(tmp_path):
    """write_data(records, name) -> path of a jsonl (or json) file."""

    def write(records, name="data.jsonl"):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        text = lines if name.endswith("l") else json.dumps(records, ensure_ascii=False, indent=1)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def make_image(tmp_path):
    """make_image(name, width, height) -> the image folder; deterministic noise."""
    folder = tmp_path / "images"

    def make(name="a.png", width=200, height=120, mode="RGB"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def qa():
    """qa(question, answer, **more) -> a raw record with one question and one answer."""

    def conversation(question="What is it?", answer="A cat.", **more):
        return {**more, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}

    return conversation


@pytest.fixture
def six_records(make_image, qa):
    """Records with images a.png and b.png in the image folder; the second and the fifth are unusable."""
    make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    box = "<ref>it</ref><box>[[36, 12, 180, 60]]</box>"
    return [
        qa("A?", "Yes.", image="a.png"),
        qa(image="none.png"),
        qa("Where?", box, image="b.png", boxes="pixel", width=360, height=120),
        qa("C <b>bold</b>?", "No."),
        {"text": 1},
        qa("<image> <image>", "Both.", image=["a.png", "b.png"]),
    ]


@pytest.fixture
def planned_dataset(data_base, write_data, make_image, qa, tmp_path):
    """Forty records, two of them broken, one too long."""
    for name, size in {"a.png": (100, 90), "b.png": (360, 120), "c.png": (120, 360)}.items():
        folder = make_image(name, *size)
    records = [qa(f"Q{i}?", f"A{i}. " * (1 + i % 5), image="abc"[i % 3] + ".png") for i in range(25)]
    records += [qa(f"T{i}?", f"A{i}. " * (1 + i % 9)) for i in range(12)]
    records += [qa("word " * 500, "Late."), qa(image="none.png"), {"text": 1}]
    return MultimodalDataset(data_base, write_data(records), folder, max_length=300, on_bad_sample="skip")
