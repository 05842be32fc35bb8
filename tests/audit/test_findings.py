"""Each finding is counted, and its examples name the records; data without any finds none."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.datasets.source_kinds import write_parquet, write_webdataset
from xtuner_plugins.audit.check import PlainFiles, check_dataset
from xtuner_plugins.audit.findings import find, near_pairs
from xtuner_plugins.audit.opening import look_at, normalize
from xtuner_plugins.datasets import MultimodalDataset


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs a.png to r.png; copies of a, one small and compressed; a very wide image; a tiny one of 5:1."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("astronaut", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name[0]}.png")
    astronaut = Image.open(folder / "a.png")
    astronaut.resize((300, 300)).save(folder / "a_small.png", "JPEG", quality=60)
    astronaut.save(folder / "a_copy.png")
    noise = np.random.default_rng(0).integers(0, 256, (100, 900, 3), np.uint8)
    for name, pixels in {"wide": noise, "tiny": noise[:20, :100]}.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def found(write_data, photographs, data_base, qa):
    """found(rows of one file, of another file, of validation data) -> {kind: finding}; a row is what `qa` takes."""

    def checked(files, **settings):
        paths = []
        for name, rows in files.items():
            records = [qa(*row[:2], **({"image": f"{row[2]}.png"} if len(row) > 2 else {})) for row in rows]
            paths.append(write_data(records, f"{name}.jsonl"))
        files = paths, str(photographs)
        dataset = MultimodalDataset(str(data_base), *files, **settings) if settings else PlainFiles(*files)
        return dataset, check_dataset(dataset, num_workers=0)

    def call(one, other=(), held_out=(), **settings):
        training = checked({"one": one, **({"other": other} if other else {})}, **settings)
        return {each.kind: each for each in find(*training, [checked({"val": held_out})] if held_out else [])}

    return call


def test_copies_within_and_between_files(found):
    assert normalize("  A  Cat.\n") == normalize("a cat") == normalize("Ａ cat") != normalize("A dog")
    assert found([(f"What is {name}?", f"It is {name}.", name) for name in "acr"]) == {}
    one = [("What?", "A woman.", "a"), ("what ?", "a woman", "a_copy"), ("Who?", "She.", "a")]
    other = [("What?", "A woman.", "a"), ("What?", "Tea.", "c"), ("Where?", "There.", "a_small")]
    kinds = found(one, other)
    assert list(kinds) == ["equal_records", "equal_images", "near_images"]
    assert kinds["equal_records"].count == 1 and kinds["equal_records"].where == {"one / other": 1}
    assert kinds["equal_records"].examples == [[(0, 0, 0), (0, 1, 0)]]
    # a.png and a_copy.png within `one`; a.png in `other` is the same file in another data set
    assert kinds["equal_images"].count == 2 and kinds["equal_images"].where == {"one": 1, "one / other": 1}
    assert kinds["near_images"].count == 1 and (0, 1, 2) in kinds["near_images"].examples[0]


def test_leaks_of_records_images_and_looks(found):
    """The same under another name, about another question, and another file of the same photograph."""
    train = [("What?", "A woman.", "a"), ("What?", "Tea.", "c"), ("2 + 2?", "4"), ("2 + 2?", "4")]
    copies = [("What?", "A woman.", "a_copy"), ("Is it hot?", "Yes.", "c"), ("Who is it?", "Eileen.", "a_small")]
    held_out = [*copies, ("2 + 2?", "4."), ("What flies?", "A rocket.", "r")]
    kinds = found(train, held_out=held_out)
    assert kinds["leaked_records"].count == 2 and kinds["leaked_records"].total == 5
    assert kinds["leaked_records"].examples == [[(1, 0, 0), (0, 0, 0)], [(1, 0, 3), (0, 0, 2)]]
    assert kinds["leaked_images"].count == 2 and kinds["leaked_images"].where == {"val / one": 2}
    assert kinds["leaked_looks"].examples == [[(1, 0, 2), (0, 0, 0)]]
    assert kinds["equal_records"].examples == [[(0, 0, 2), (0, 0, 3)]]
    assert found(train[:3], held_out=held_out[4:]) == {}


def test_answers_texts_shapes_and_what_does_not_fit(found):
    kinds = found([("Describe it.", "A nice photo.", name) for name in "acr"])
    assert kinds["equal_texts"].count == 2 and list(kinds) == ["equal_texts"]
    long = " ".join(map(str, range(500)))
    kinds = found([("W?", "Wide.", "wide"), ("T?", "t", "tiny"), ("All?", long), ("Q", "A")], max_length=130)
    expected = {"upscaled": 1, "extreme": 0, "shrink_tiles": 0, "truncate_text": 2}
    assert {kind: each.examples for kind, each in kinds.items()} == {k: [[(0, 0, row)]] for k, row in expected.items()}


def test_images_in_rows_are_told_apart(qa, photographs, tmp_path):
    """Their names in messages are alike: `image 1` in each row, `0000.0.png` in each shard."""
    names = ("a.png", "c.png", "r.png", "tiny.png", "a_copy.png")
    records = [qa(f"{name}?", f"{name}.", image=[name]) for name in names]
    for write in (write_parquet, write_webdataset):
        (out := tmp_path / write.__name__).mkdir()
        dataset = PlainFiles([write(records, photographs, out)["data_paths"]])
        kinds = {each.kind: each for each in find(dataset, check_dataset(dataset, num_workers=0))}
        assert (kinds["upscaled"].count, kinds["upscaled"].total, kinds["equal_images"].count) == (1, 5, 1)


def test_all_near_pairs_and_no_others():
    """Those of at most five bits, against a comparison of all with all; images without structure aren't compared."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 1 << 63, (300, 2), np.uint64)
    for row in range(0, 120, 2):  # neighbors that differ in 0 to 9 bits
        looks[row + 1] = looks[row]
        for bit in rng.choice(128, row // 12, replace=False):
            looks[row + 1, bit // 64] ^= np.uint64(1 << (bit % 64))
    looks = np.unique(looks, axis=0)
    expected = np.argwhere(np.triu(np.bitwise_count(looks[:, None] ^ looks[None]).sum(2) <= 5, 1))
    flat = np.array([[0, 0], [0, 1], [1, 0]], np.uint64)
    assert len(expected) > 20 and near_pairs(looks).tolist() == expected.tolist()
    assert not any(len(near_pairs(flat[:number])) for number in (0, 1, 3))
    assert look_at(Image.new("RGB", (50, 50), "red"), (50, 50), None)[3] == (0, 0)
