import logging
import random

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from xtuner_plugins.datasets import DynamicTiling, MultimodalDataset, SettingError
from xtuner_plugins.datasets.images.media import load_image


@pytest.fixture
def mixture(data_base, write_data, make_image, qa):
    """Two files: three records with images (one tile, several tiles), four without."""
    make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    folder = make_image("sub/c.jpg", 300, 400)
    seen = write_data(
        [
            qa("<image>\nA?", "Yes.", image="a.png"),
            qa("B?", "No.", image="b.png"),
            qa("C?", "Perhaps.", image="sub/c.jpg"),
        ],
        "seen.json",
    )
    text = write_data([qa(f"{i}?", f"{i}.") for i in range(4)], "text.jsonl")
    return dict(base=str(data_base), data_paths=[seen, text], image_folders=[folder, None])


def test_a_sample_with_its_tiles(mixture, hf_tokenizer):
    dataset = MultimodalDataset(**mixture)
    sample = dataset[1]
    image = load_image(mixture["image_folders"][0] + "/b.png")
    assert torch.equal(sample["tiles"], DynamicTiling(1, 6, 112)(image)) and len(sample["tiles"]) == 4
    context = hf_tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert (sample["input_ids"] == context).sum() == 4 * 16
    assert hf_tokenizer.decode(sample["labels"][sample["labels"] != -100]) == "No.<|im_end|>"
    assert sample["source"] == mixture["data_paths"][0] + ":15"
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64


def test_a_dataset_has_as_many_samples_as_it_says(mixture):
    dataset = MultimodalDataset(**mixture)
    assert [sample["index"] for sample in list(dataset)] == list(range(7))
    assert dataset[-1]["index"] == 6
    for index in (7, -8):
        with pytest.raises(IndexError):
            dataset[index]


def test_settings_take_the_place_of_the_bases(mixture):
    dataset = MultimodalDataset(**mixture, max_tiles=2, template="Hermes-2")
    assert len(dataset[1]["tiles"]) == 3
    source = dataset.sources[0]
    assert source.tiling == DynamicTiling(1, 2, 112) and source.template.name == "Hermes-2"


def test_several_images_share_the_tiles(data_base, write_data, make_image, qa):
    folder = make_image("a.png", 360, 120)
    path = write_data(
        [qa("<image> and <image>", "Alike.", image=["a.png"] * 2), qa("<image>" * 8, "Alike.", image=["a.png"] * 8)]
    )
    dataset = MultimodalDataset(data_base, path, folder)
    assert len(dataset[0]["tiles"]) == 2 * 4 and len(dataset[1]["tiles"]) == 8


def test_from_config_with_workers_and_collate(mixture, hf_tokenizer):
    """As MMEngine builds it from a config with strings, in worker processes."""
    loader = Runner.build_dataloader(
        dict(
            dataset=dict(type="MultimodalDataset", **mixture),
            sampler=dict(type="DefaultSampler", shuffle=False),
            batch_size=4,
            num_workers=2,
            collate_fn=dict(type="collate", pad_token_id=hf_tokenizer.pad_token_id),
        )
    )
    first, second = list(loader)
    assert first["input_ids"].shape == first["labels"].shape == first["attention_mask"].shape
    assert first["attention_mask"].dtype == torch.bool and first["tiles"].dtype == torch.uint8
    assert first["num_tiles"].tolist()[1] == 4 and first["num_tiles"][3] == 0
    assert first["num_tiles"].sum() == len(first["tiles"])
    lengths = first["attention_mask"].sum(1)
    for row, length in enumerate(lengths):
        assert first["attention_mask"][row, :length].all()
        assert (first["input_ids"][row, length:] == hf_tokenizer.pad_token_id).all()
        assert (first["labels"][row, length:] == -100).all()
    assert second["tiles"].shape == (0, 3, 112, 112) and second["num_tiles"].tolist() == [0, 0, 0]
    assert second["sources"][-1].endswith("text.jsonl:4")


def test_pad_to_multiple(mixture):
    from xtuner_plugins.datasets import collate

    dataset = MultimodalDataset(**mixture)
    assert collate([dataset[3], dataset[4]], pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0


UNUSABLE = [
    (dict(data_paths=["none.json"], image_folders=None), "none.json.*can't be read"),
    (dict(data_paths=[], image_folders=None), "data_paths is empty"),
    (dict(image_folders=["nowhere", None]), "nowhere.*isn't there"),
    (dict(image_folders=["."]), "image_folders has 1 entries for 2"),
    (dict(repeat_times=[1]), "repeat_times has 1 entries"),
    (dict(repeat_times=[1, 0]), "repeat_times holds 0"),
    (dict(repeat_times=[1, -2]), "repeat_times holds -2"),
    (dict(repeat_times=[1, "2"]), "repeat_times holds '2'"),
    (dict(max_tiles=0), "max_tiles=0"),
    (dict(template="none"), "none.*internvl2_5"),
    (dict(max_length=0), "max_length=0"),
    (dict(base="nowhere"), "nowhere.*isn't there"),
    (dict(base=None), "base=None can't be used"),
    (dict(fast_decoding="gpu"), "fast_decoding='gpu' is unknown; it is one of False, True, auto$"),
    (dict(on_bad_sample="ignore"), "on_bad_sample"),
    (dict(num_frames=0), "num_frames"),
    (dict(dataset_settings=[{"max_tile": 3}, None]), "max_tile"),
    (dict(dataset_settings=[{}]), "has 1 entries"),
    (dict(dataset_settings=[{"loss_weight": 0}, None]), "loss_weight"),
]


def test_unusable_settings_name_themselves(mixture):
    for change, words in UNUSABLE:
        with pytest.raises(SettingError, match=words):
            MultimodalDataset(**(mixture | change))


def test_a_long_sample_loses_tiles_then_text_then_its_place(data_base, write_data, make_image, qa):
    folder = make_image("a.png", 360, 120)
    path = write_data([qa("Q?", "word " * 30, image="a.png")])
    settings = dict(base=data_base, data_paths=path, image_folders=folder)
    whole = MultimodalDataset(**settings)[0]
    length = len(whole["input_ids"])
    assert len(whole["tiles"]) == 4
    fewer = MultimodalDataset(**settings, max_length=length - 1)[0]
    assert len(fewer["tiles"]) == 3 and torch.equal(fewer["input_ids"][-40:], whole["input_ids"][-40:])
    one = MultimodalDataset(**settings, max_length=length - 48)[0]
    assert len(one["tiles"]) == 1 and len(one["input_ids"]) == length - 48
    cut = MultimodalDataset(**settings, max_length=length - 50)[0]
    assert len(cut["tiles"]) == 1 and torch.equal(cut["input_ids"], one["input_ids"][:-2])
    gone = MultimodalDataset(**settings, max_length=30)[0]
    assert gone["dropped"] == "too_long" and "max_length is 30" in gone["message"]


def test_samples_take_no_random_numbers(mixture):
    """So a worker's generators don't matter, and a resumed run, whose workers are new, gets the same samples."""
    samples = list(MultimodalDataset(**mixture))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    again = list(MultimodalDataset(**mixture))
    assert all(
        torch.equal(a[key], b[key]) for a, b in zip(samples, again, strict=True) for key in ("input_ids", "tiles")
    )
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    assert len(list(MultimodalDataset(**mixture))) == 7
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_first_warning_of_each_reason_is_logged(data_base, write_data, make_image, qa):
    """Training doesn't learn a doubtful record in silence, and doesn't say the same of a million of them."""
    folder = make_image("a.png", 100, 90)
    records = [qa("Fine?"), *(qa(f"{index}?", "See <image_1>.", image="a.png") for index in range(3))]
    dataset = MultimodalDataset(str(data_base), [write_data(records)], folder)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda entry: messages.append(entry.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        samples = list(dataset)
    finally:
        logger.removeHandler(handler)
    assert len(samples) == 4 and len(messages) == 1
    assert "data.jsonl:2: " in messages[0] and "<image_1>" in messages[0] and "tools/check_data.py" in messages[0]
