"""Each finding is counted, and its examples name the records; data without any finds none."""

from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.datasets.source_kinds import write_parquet, write_webdataset
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.findings import WORDS, find
from xtuner_plugins.datasets.audit.looking import PlainFiles


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Different photographs a.png to d.png; small copies of a, compressed, one mirrored; a very wide and a tiny one."""
    import skimage.data

    folder = tmp_path_factory.mktemp("images")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name[0]}.png")
    Image.open(folder / "a.png").resize((300, 300)).save(folder / "a_small.jpg", quality=60)
    Image.open(folder / "a.png").save(folder / "a_copy.png")
    ImageOps.mirror(Image.open(folder / "a.png")).resize((300, 300)).save(folder / "turned.jpg", quality=70)
    noise = np.random.default_rng(0).integers(0, 256, (100, 900, 3), np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    Image.fromarray(noise[:20, :20]).save(folder / "tiny.png")
    return folder


@pytest.fixture
def found(write_data, photographs, data_base, tmp_path):
    """found({file: records}, validation records, plain) -> {kind: finding}."""

    def call(files, held_out=None, plain=True, **settings):
        def opened(files):
            paths = [write_data(records, name) for name, records in files.items()]
            if plain:
                return PlainFiles(paths, [str(photographs)] * len(paths))
            options = dict(cache_dir=str(tmp_path / "cache"), **settings)
            return MultimodalDataset(str(data_base), paths, str(photographs), **options)

        def checked(dataset):
            return dataset, check_dataset(dataset, num_workers=0, complain=lambda text: None)

        dataset, reports = checked(opened(files))
        validation = [checked(opened({"val.jsonl": held_out}))] if held_out else []
        return {each.kind: each for each in find(dataset, reports, validation)}

    return call


def test_nothing_is_found_where_nothing_is(found, qa):
    records = [qa(f"What is {name}?", f"It is {name}.", image=f"{name}.png") for name in "acr"]
    assert found({"a.jsonl": records}) == {}


def test_copies_within_and_between_files(found, qa):
    one = [
        qa("What?", "A woman.", image="a.png"),
        qa("what ?", "a woman", image="a_copy.png"),
        qa("Who?", "She.", image="a.png"),
    ]
    other = [
        qa("What?", "A woman.", image="a.png"),
        qa("What?", "Tea.", image="c.png"),
        qa("Where?", "There.", image="a_small.jpg"),
    ]
    kinds = found({"one.jsonl": one, "other.jsonl": other})
    # "what ?" isn't "What?": spaces inside a text count
    assert kinds["equal_records"].count == 1 and kinds["equal_records"].where == {"one / other": 1}
    assert kinds["equal_records"].examples == [[(0, 0, 0), (0, 1, 0)]]
    # a.png and a_copy.png within `one`, a.png again in `other`: one image file counts once per data set
    assert kinds["equal_images"].count == 2 and kinds["equal_images"].where == {"one": 1, "one / other": 1}
    assert kinds["near_images"].count == 1 and (0, 1, 2) in kinds["near_images"].examples[0]
    assert list(kinds) == ["equal_records", "equal_images", "near_images"]


def test_mirrored_copies(found, qa):
    names = ["c.png", "a.png", "turned.jpg", "r.png"]
    kinds = found({"a.jsonl": [qa(f"{name}?", f"{name} {number}", image=name) for number, name in enumerate(names)]})
    assert list(kinds) == ["mirrored_images"] and kinds["mirrored_images"].examples == [[(0, 0, 1), (0, 0, 2)]]
    assert kinds["mirrored_images"].where == {"a": 1} and kinds["mirrored_images"].count == 1


def test_texts_that_fit_every_image(found, qa):
    records = [qa("Describe it.", "A nice photo.", image=f"{name}.png") for name in "acr"]
    assert found({"a.jsonl": records})["equal_texts"].count == 2


def test_leaks_of_records_images_and_looks(found, qa):
    train = [qa("What?", "A woman.", image="a.png"), qa("What?", "Tea.", image="c.png"), qa("2 + 2?", "4")]
    held_out = [
        qa("What?", "A woman.", image="a_copy.png"),  # the same under another name
        qa("Is it hot?", "Yes.", image="c.png"),  # another question
        qa("Who is it?", "Eileen.", image="a_small.jpg"),  # another file of the same photograph
        qa("2 + 2?", "4."),
        qa("What flies?", "A rocket.", image="r.png"),
    ]
    kinds = found({"train.jsonl": train}, held_out)
    assert kinds["leaked_records"].count == 2 and kinds["leaked_records"].total == 5
    assert kinds["leaked_records"].examples == [[(1, 0, 0), (0, 0, 0)], [(1, 0, 3), (0, 0, 2)]]
    assert kinds["leaked_images"].count == 2 and kinds["leaked_images"].where == {"val / train": 2}
    assert kinds["leaked_looks"].examples == [[(1, 0, 2), (0, 0, 0)]]
    assert found({"train.jsonl": train}, held_out[4:]) == {}


def test_answers(found, qa):
    answers = ["I'm sorry, but I can't say.", "A cup.", "the cat and the dog " * 12]
    kinds = found({"a.jsonl": [qa(f"{number}?", answer) for number, answer in enumerate(answers)]})
    assert kinds["refusals"].examples == [[(0, 0, 0)]] and kinds["repetitive"].examples == [[(0, 0, 2)]]


def test_outliers_and_shapes(found, qa):
    records = [qa(f"{number}?", f"word {number} " * (3 + number % 3)) for number in range(30)]
    records += [
        qa("All?", " ".join(map(str, range(2000)))),
        qa("W?", "Wide.", image="wide.png"),
        qa("T?", "t", image="tiny.png"),
    ]
    for plain in (True, False):
        kinds = found({"a.jsonl": records}, plain=plain)
        assert (0, 0, 30) in [example[0] for example in kinds["long_records"].examples]
        assert kinds["extreme"].examples == [[(0, 0, 31)]] and [(0, 0, 32)] in kinds["upscaled"].examples


def test_what_does_not_fit(found, qa):
    records = [qa("W?", "Wide.", image="wide.png"), qa("All?", "word " * 500), qa()]
    kinds = found({"a.jsonl": records}, plain=False, max_length=100)
    assert kinds["shrink_tiles"].examples == [[(0, 0, 0)]] and kinds["truncate_text"].examples == [[(0, 0, 1)]]


@pytest.mark.parametrize("write", [write_parquet, partial(write_webdataset, shards=2)], ids=["rows", "samples"])
def test_images_in_rows_are_told_apart(write, qa, photographs, tmp_path):
    """Their names in messages are alike: `image 1` in each row, `0000.png` in each shard."""
    records = [qa(f"{name}?", f"{name}.", image=name) for name in ("a.png", "c.png", "r.png", "tiny.png", "a_copy.png")]
    (tmp_path / "data").mkdir()
    path = write(records, photographs, tmp_path / "data")["data_paths"]
    dataset = PlainFiles([path], [None])
    findings = {each.kind: each for each in find(dataset, check_dataset(dataset, num_workers=0))}
    assert (findings["upscaled"].count, findings["upscaled"].total) == (1, 5)
    assert findings["equal_images"].count == 1


def test_words_are_complete():
    assert all(len(words) == 4 and all(words) for words in WORDS.values())
