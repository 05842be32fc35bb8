"""Each finding is counted, and its examples name the records; data without any finds none."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.datasets.source_kinds import write_parquet, write_webdataset
from xtuner_plugins.audit import findings
from xtuner_plugins.audit.check import PlainFiles, check_dataset, open_questions
from xtuner_plugins.audit.findings import find, groups, near_pairs
from xtuner_plugins.audit.opening import look_at, normalize
from xtuner_plugins.datasets import MultimodalDataset

A = (0, 0, 0)  # the first record of the training data's first file


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs a.png to r.png; copies of a, one small and compressed; wide, tiny (1:5) and plain images."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("astronaut", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name[0]}.png")
    astronaut = Image.open(folder / "a.png")
    astronaut.resize((300, 300)).save(folder / "a_small.png", "JPEG", quality=60)
    astronaut.save(folder / "a_copy.png")
    noise = np.random.default_rng(0).integers(0, 256, (175, 900, 3), np.uint8)
    plain = {f"plain{level}": np.full((500, 500, 3), level, np.uint8) for level in (0, 9)}
    for name, pixels in {"wide": noise[:100], "tiny": noise[:, :35], **plain}.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def checked(write_data, photographs, data_base, qa):
    """checked({file name: rows}, settings) -> (dataset, its reports); a row is question, answer and perhaps image."""

    def call(files, **settings):
        def record(question, answer, image=None):
            return qa(question, answer, image=image and f"{image}.png")

        files = [write_data([record(*row) for row in rows], f"{name}.jsonl") for name, rows in files.items()]
        files = files, str(photographs)
        dataset = MultimodalDataset(str(data_base), *files, **settings) if settings else PlainFiles(*files)
        return dataset, check_dataset(dataset, num_workers=0)

    return call


def facts(*data):
    """{kind: (count, total, where, examples)} of what is found."""
    return {each.kind: (each.count, each.total, each.where, each.examples) for each in find(*data)}


def test_copies_within_and_between_files(checked):
    assert normalize("  A  Cat.\n") == normalize("a cat") == normalize("Ａ cat") != normalize("A dog")
    none = [(f"What is {name}?", f"It is {name}.", name) for name in ("a", "c", "plain0", "plain9")]
    assert facts(*checked({"one": none})) == {}
    one = [("What?", "A woman.", "a"), ("what ?", "a woman", "a_copy"), *[("2 + 2?", "4")] * 5]
    other = [("What?", "A woman.", "a"), ("What?", "Tea.", "c"), ("Where?", "There.", "a_small")]
    equal, both = [(0, 0, row) for row in (2, 3, 4, 5)], {"one / other": 1}
    assert facts(*checked({"one": one, "other": other})) == {
        "equal_records": (5, 10, {"one": 4, **both}, [equal, [A, (0, 1, 0)]]),
        "equal_images": (2, 5, {"one": 1, **both}, [[A, (0, 0, 1), (0, 1, 0)]]),  # the last is the same file
        "near_images": (1, 5, both, [[A, (0, 1, 2)]]),
    }


def test_leaks_of_records_images_and_looks(checked, photographs):
    """Of the same under another name, about another question, and as another file; of benchmarks, too."""
    train = [("What?", "A woman.", "a"), ("What?", "Tea.", "c"), ("2 + 2?", "4"), ("2 + 2?", "4")]
    copies = [("What?", "A woman.", "a_copy"), ("Is it hot?", "Yes.", "c"), ("Who is it?", "Eileen.", "a_small")]
    held_out = [*[("Up?", "Down.")] * 2, *copies, ("2 + 2?", "4.")]
    training, image = checked({"one": train}), [(1, 0, 2), A]
    assert facts(*training, [checked({"val": held_out})]) == {
        "leaked_records": (2, 6, {"val / one": 2}, [image, [(1, 0, 5), (0, 0, 2)]]),
        "leaked_images": (2, 3, {"val / one": 2}, [image, [(1, 0, 3), (0, 0, 1)]]),
        "leaked_looks": (1, 3, {"val / one": 1}, [[(1, 0, 4), A]]),
        "equal_records": (1, 4, {"one": 1}, [[(0, 0, 2), (0, 0, 3)]]),
    }
    questions = open_questions({"bench": [[], [photographs / "r.png", photographs / "c.png"]]})
    assert [turn.text for row in (0, 1) for turn in questions.record(0, row).turns] == ["?", "bench 0", "?", "bench 1"]
    leaked = facts(*training, [(questions, check_dataset(questions, num_workers=0))])["leaked_images"]
    assert leaked == (1, 2, {"bench / one": 1}, [[(1, 0, 1), (0, 0, 1)]])


def test_answers_texts_shapes_and_what_does_not_fit(checked, monkeypatch):
    monkeypatch.setattr(findings, "MOST_EXAMPLES", 2)
    rows = [("Describe it.", "A nice photo.", name) for name in ("a", "plain0", "plain9")]
    assert facts(*checked({"one": rows})) == {"equal_texts": (2, 3, {"one": 2}, [[(0, 0, row) for row in range(3)]])}
    long = " ".join(map(str, range(500)))
    rows = [("W?", "Wide.", "wide"), ("T?", "t", "tiny"), *((f"{number}?", long) for number in range(3)), ("Q", "A")]
    assert facts(*checked({"one": rows}, max_length=130)) == {
        "upscaled": (1, 2, {"one": 1}, [[(0, 0, 1)]]),
        "extreme": (1, 2, {"one": 1}, [[A]]),
        "shrink_tiles": (1, 6, {"one": 1}, [[A]]),
        "truncate_text": (3, 6, {"one": 3}, [[(0, 0, 2)], [(0, 0, 4)]]),
    }


def test_images_in_rows_are_told_apart(qa, photographs, tmp_path):
    """Their names in messages are alike: `image 1` in each row, `0000.0.png` in each shard."""
    names = ("a.png", "c.png", "r.png", "tiny.png", "a_copy.png")
    records = [qa(f"{name}?", f"{name}.", image=[name]) for name in names]
    for write in (write_parquet, write_webdataset):
        (out := tmp_path / write.__name__).mkdir()
        dataset = PlainFiles([write(records, photographs, out)["data_paths"]])
        found = find(dataset, check_dataset(dataset, num_workers=0))
        assert [(each.kind, each.count, each.total) for each in found] == [("equal_images", 1, 5), ("upscaled", 1, 5)]


def test_all_near_pairs_and_no_others(monkeypatch):
    """Those of at most five bits, against a comparison of all with all; images without structure aren't compared."""
    monkeypatch.setattr(findings, "WINDOW", 1)  # enough for pairs
    looks = (rng := np.random.default_rng(0)).integers(0, 1 << 63, (300, 2), np.uint64)
    for row in range(0, 120, 2):  # neighbors that differ in 0 to 9 bits
        looks[row + 1] = looks[row]
        for bit in rng.choice(128, row // 12, replace=False):
            looks[row + 1, bit // 64] ^= np.uint64(1 << (bit % 64))
    looks = np.unique(looks, axis=0)
    expected = np.argwhere(np.triu(np.bitwise_count(looks[:, None] ^ looks[None]).sum(2) <= 5, 1))
    assert len(expected) > 20 and near_pairs(looks).tolist() == expected.tolist()
    # of 10 bits and more each; of three that differ in the same part, each is compared with the next alone
    assert near_pairs(np.array([[0, 1023], [0, 2047], [0, 4095]], np.uint64)).tolist() == [[0, 1], [1, 2]]
    for flat in ([], [[0, 511]], [[0, 511], [0, 1023]]):
        assert near_pairs(np.array(flat, np.uint64).reshape(-1, 2)).tolist() == []
    assert look_at(Image.new("RGB", (50, 50), "red"), (50, 50), None)[3] == (0, 0)
    assert [rows.tolist() for rows in groups(np.array([3, 1, 3, 2, 1, 3]))] == [[0, 2, 5], [1, 4]]
